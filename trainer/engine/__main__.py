"""The engine child: `python -m trainer.engine --in FD --out FD`, with TUNESMITH_DEVICE and TUNESMITH_THREADS. Spawned
by the supervisor, never forked; ends with it.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CACHE = 2 * 1024**3  # bytes of encoded pictures and captions kept across tunes


def main() -> None:
    """Sets the process up, then serves."""
    wanted = arguments()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides what it means
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; deterministic tunes want it
    os.environ.setdefault("OMP_NUM_THREADS", str(wanted.threads))
    # How long a thread spins for its neighbours. With libgomp's own length two threads on two cores, one of them busy
    # with something else, made 0.2 steps a second of tiny-shapes instead of 20; with this one 3, and idle as many.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    # What we start must not hold the supervisor's pipes open.
    for descriptor in (wanted.incoming, wanted.outgoing):
        os.set_inheritable(descriptor, False)

    # After the settings above: torch reads its surroundings when it is imported.
    import diffusers.utils.logging
    import transformers.utils.logging

    from trainer.engine import hardware
    from trainer.engine.cache import Cache
    from trainer.engine.child import Child
    from trainer.engine.decoder import Decoder
    from trainer.engine.residence import Residence
    from trainer.engine.tune import Workshop

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    hardware.prepare(wanted.threads)
    device = hardware.device_of(wanted.device)
    with (
        os.fdopen(wanted.incoming, "rb") as incoming,
        os.fdopen(wanted.outgoing, "wb") as outgoing,
        Decoder() as decoder,
    ):
        shop = Workshop(device, wanted.threads, Residence(device), Cache(CACHE), decoder)
        Child(incoming, outgoing, shop).serve()


def arguments() -> argparse.Namespace:
    """What the supervisor asks for."""
    parser = argparse.ArgumentParser(prog="python -m trainer.engine")
    parser.add_argument("--in", dest="incoming", type=int, required=True, help="descriptor to read messages from")
    parser.add_argument("--out", dest="outgoing", type=int, required=True, help="descriptor to write messages to")
    parser.add_argument("--device", default=os.environ.get("TUNESMITH_DEVICE", "auto"), help="auto, cpu or cuda")
    threads = int(os.environ.get("TUNESMITH_THREADS", "0"))
    parser.add_argument("--threads", type=int, default=threads, help="of torch, on the CPU; 0: one for each core")
    wanted = parser.parse_args()
    wanted.threads = wanted.threads or len(os.sched_getaffinity(0))
    return wanted


def die_with_parent() -> None:
    """So that no orphan holds the GPU, however the supervisor ends. The pipe's end says the same, a little later."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(0)


if __name__ == "__main__":
    main()

"""`python3 -m deploy.dockerfiles [gateway|trainer]`: builds the images, says what they weigh, runs them together on a
network of their own, and stops them. Called by scripts/dockerfiles, which gives it mounts and processes of its own.

    build, weigh, audit each -> gateway healthy -> trainer healthy -> trainer connected -> trainer, gateway stop

Exit code 0: every step did what it should. Nothing is left but the bases and caches in the store.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from deploy.dockerfiles import build, container, context, host
from deploy.dockerfiles.base import BaseError
from deploy.dockerfiles.build import Image
from deploy.dockerfiles.container import Container, ContainerError
from deploy.dockerfiles.dockerfile import DockerfileError
from deploy.dockerfiles.room import RoomError

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("gateway", "trainer")
STOP_GRACE = 30.0  # seconds; what deploy/compose.yaml gives
PROGRAMS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/tunesmith/bin")
# What an image that only runs must not have.
UNWANTED = {
    "cc",
    "gcc",
    "c++",
    "g++",
    "ld",
    "make",
    "pip",
    "pip3",
    "git",
    "curl",
    "wget",
    "pytest",
    "mypy",
    "ruff",
    "buf",
}


class AuditError(Exception):
    """An image has or is what it must not."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/dockerfiles", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=NAMES, help="build and run only this one")
    chosen = (name,) if (name := parser.parse_args().name) else NAMES
    signal.signal(signal.SIGTERM, _ended)
    start = time.monotonic()
    try:
        with _store() as store, tempfile.TemporaryDirectory(prefix="scratch-", dir=store) as scratch:
            _run(chosen, store, Path(scratch))
    except (AuditError, BaseError, ContainerError, DockerfileError, RoomError, host.HostError) as error:
        print(f"scripts/dockerfiles: {error}", file=sys.stderr)
        return 1
    _say(f"all as it should be, after {time.monotonic() - start:.0f} s")
    return 0


def _run(chosen: tuple[str, ...], store: Path, scratch: Path) -> None:
    gathered, unknown = context.gather(REPOSITORY, scratch / "context")
    _say(f"{gathered} files in the build context")
    if unknown:
        _say(f"note: git does not know, so the images do not have: {', '.join(unknown)}")
    images: dict[str, Image] = {}
    for name in chosen:
        start = time.monotonic()
        text = (REPOSITORY / f"Dockerfile.{name}").read_text()
        try:
            images[name] = build.build(name, text, scratch / "context", store, scratch, _say)
        except DockerfileError as error:
            raise DockerfileError(f"Dockerfile.{name}:{error}") from error
        _say(f"{name}: built in {time.monotonic() - start:.0f} s")
        _weigh(name, images[name])
        _audit(name, images[name])
    host.leave_network()
    with contextlib.ExitStack() as stack:
        running: dict[str, Container] = {}
        for name, image in images.items():
            environment = _gateway() if name == "gateway" else _trainer(running.get("gateway"), scratch)
            running[name] = stack.enter_context(container.running(name, image, environment, scratch / f"run-{name}"))
            _say(f"{name}: healthy after {running[name].wait_healthy():.1f} s, as user {running[name].real_user()}")
        if len(running) == 2:
            _together(running["trainer"])
        for name, one in reversed(running.items()):
            _say(f"{name}: {one.memory_bytes() / 1e6:.0f} MB of memory in use")
            code, spent = one.stop(STOP_GRACE)
            if code:
                raise ContainerError(f"{name} has ended with {code} after {one.image.stop_signal}:\n{one.tail()}")
            _say(f"{name}: ended by {one.image.stop_signal} in {spent:.1f} s with exit code 0")


def _gateway() -> dict[str, str]:
    return {"TUNESMITH_SIGNING_SECRET": secrets.token_hex(32), "TUNESMITH_PUBLIC_URL": "http://127.0.0.1:8080"}


def _trainer(gateway: Container | None, scratch: Path) -> dict[str, str]:
    """With a gateway, a token of its; without one, none that anybody would take: the engine gets ready all the same."""
    token = "tt_nobody"  # noqa: S105  (opens nothing)
    if gateway is not None:
        log = scratch / "token"
        if gateway.execute(("tunesmith", "trainer-token", "create", "trainer-1"), 30, log):
            raise ContainerError(f"no token was made:\n{log.read_text()}")
        token = log.read_text().split()[-1]
    return {
        "TUNESMITH_GATEWAYS": "127.0.0.1:50051",
        "TUNESMITH_TRAINER_ID": "trainer-1",
        "TUNESMITH_TRAINER_TOKEN": token,
        "TUNESMITH_DEVICE": "cpu",
        "TUNESMITH_THREADS": "1",
    }


def _together(trainer: Container) -> None:
    """The trainer of one image has found the gateway of the other."""
    connected = ("healthy", "TUNESMITH_METRICS", "/metrics", "tunesmith_trainer_connected 1.0")
    deadline = time.monotonic() + 30
    while trainer.execute(connected, 5):
        if time.monotonic() > deadline:
            raise ContainerError(f"the trainer did not connect:\n{trainer.tail()}")
        time.sleep(0.2)
    _say("trainer: connected to the gateway")


def _weigh(name: str, image: Image) -> None:
    own = image.layers[0]
    base, added = sum(host.size(layer) for layer in image.layers[1:]), host.size(own)
    _say(f"{name}: {(base + added) / 1e6:.0f} MB unpacked: base {base / 1e6:.0f}, on top {added / 1e6:.0f}")
    packages = [path for path in own.glob("opt/tunesmith/lib/python*/site-packages/*") if path.is_dir()]
    sizes = sorted(((host.size(path), path.name) for path in packages), reverse=True)
    _say(f"{name}: of that " + ", ".join(f"{package} {size / 1e6:.0f}" for size, package in sizes[:10]))


def _audit(name: str, image: Image) -> None:
    """What the Dockerfile's text alone does not show."""
    present = {path.name for layer in image.layers for folder in PROGRAMS for path in (layer / folder).glob("*")}
    if found := present & UNWANTED:
        raise AuditError(f"{name}: the image has {', '.join(sorted(found))}")
    if image.user.partition(":")[0] in ("0", "root"):
        raise AuditError(f"{name}: the image runs as root")
    for cache in ("root/.cache", "var/lib/apt/lists", "var/cache/apt/archives/partial"):
        if any(path.is_file() for path in (image.layers[0] / cache).rglob("*")):
            raise AuditError(f"{name}: the image has files in /{cache}")


@contextlib.contextmanager
def _store() -> Iterator[Path]:
    """The folder of bases and caches, held by one run at a time. Sweeps out what a killed run has left."""
    store = Path(os.environ.get("TUNESMITH_IMAGES") or Path(tempfile.gettempdir()) / "tunesmith-images")
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    if store.is_symlink() or store.stat().st_uid != os.getuid():
        raise host.HostError(f"{store} is not ours; set TUNESMITH_IMAGES to another folder")
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise host.HostError(f"{store} is in use by another run") from None
        for left in store.glob("scratch-*"):
            shutil.rmtree(left)
        yield store


def _ended(*_: object) -> NoReturn:
    sys.exit(143)  # unwinds: what was mounted is unmounted, what was made is removed


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

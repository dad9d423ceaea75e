"""An engine child without torch: speaks trainer.pipe; what it does is the trigger word of the tune.

quick    three steps, a LoRA            dies    one step, then SIGKILL to itself
waits    one step, then a LoRA once the file "go" lies beside the work folder; Stop is obeyed
hangs    one step, then silence         breaks  Broke, the child lives on
snaps    as waits, with a snapshot of step 1, and one of step 2 once the first was uploaded
leaves   as waits, with a snapshot of step 1 where Stop wants one
"""

import argparse
import hashlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from trainer import pipe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--in", type=int, dest="source")
    parser.add_argument("--out", type=int)
    arguments = parser.parse_args()
    source, out = FileIO(arguments.source, "r"), FileIO(arguments.out, "w")

    def say(message: pipe.Message) -> None:
        out.write(pipe.encode(message))

    say(pipe.Ready(["image/stable-diffusion-v1-5"], "cpu", 8 << 30, 1, 1))
    for line in source:
        message = pipe.decode(line)
        if isinstance(message, pipe.Start):
            train(message, say, source)


def train(start: pipe.Start, say: Callable[[pipe.Message], None], source: FileIO) -> None:
    tune = (start.tune_id, start.epoch)
    for picture in start.pictures:
        assert hashlib.sha256(Path(picture.path).read_bytes()).hexdigest() == picture.sha256
        say(pipe.Judged(*tune, picture.file_id, True, "", ""))
    say(pipe.Resolved(*tune, '{"seed":7}', hashlib.sha256(b'{"seed":7}').hexdigest()))
    say(pipe.PhaseChanged(*tune, "training"))
    say(pipe.Stepped(*tune, [pipe.StepLine(1, 0.5, 1e-4, 10.0, 0.25)]))
    word = start.trigger_word
    if word == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "hangs":
        signal.pause()
    if word == "breaks":
        return say(pipe.Broke(*tune, "NAN_LOSS", "ten in a row", False))
    if word == "snaps":
        snap(start, 1, say)
    if word in ("waits", "snaps", "leaves") and (told := heard(Path(start.folder).parent / "go", source)):
        if isinstance(told, pipe.SnapshotUploaded):
            snap(start, 2, say)
            told = heard(Path(start.folder).parent / "go", source)
        if isinstance(told, pipe.Stop):
            if told.snapshot and word == "leaves":
                snap(start, 1, say)
            return say(pipe.Stopped(*tune, 1))
    say(pipe.Memory(3000, 4000))
    say(pipe.Stepped(*tune, [pipe.StepLine(step, 0.5 / step, 1e-4, 10.0, 0.75) for step in (2, 3)]))
    path = Path(start.folder) / "lora.safetensors"
    path.write_bytes(f"lora of {start.tune_id}".encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return say(pipe.Saved(*tune, str(path), sha256, path.stat().st_size, 3, 0.2, len(start.pictures)))


def heard(go: Path, source: FileIO) -> pipe.Message | None:
    while not go.exists():
        if select.select([source], [], [], 0.02)[0]:
            line = source.readline()
            if not line:
                sys.exit(0)
            return pipe.decode(line)
        time.sleep(0)
    return None


def snap(start: pipe.Start, step: int, say: Callable[[pipe.Message], None]) -> None:
    path = Path(start.folder) / f"snapshot-{step}.safetensors"
    path.write_bytes(f"{start.tune_id} after {step}".encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    say(pipe.Snapshotted(start.tune_id, start.epoch, str(path), sha256, path.stat().st_size, step))


if __name__ == "__main__":
    main()

"""A process that decodes pictures, so that a hostile one can at worst end that process. Called by `tune`; knows how it
dies, not what a picture is: that is `pictures`, which it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from trainer.engine.buckets import Crop, Rules
from trainer.engine.pictures import Judgement

TRIES = 2  # of a picture whose process a signal ends
PATIENCE = 120.0  # seconds of waiting for one picture; its process has its own, stricter limit on computing


class Decoder:
    """Decodes one picture at a time. The process is started at the first one and replaced when it dies."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def judge(self, path: Path, by: Rules, out: Path, fixed: Crop | None = None) -> Judgement:
        """As `pictures.judge`; a picture that ends the process or outlasts our patience is unreadable.

        Where a signal ended the process, another one has a try: it may have been the host that lacked memory.
        """
        asked = {"path": str(path), "out": str(out), "rules": asdict(by), "fixed": asdict(fixed) if fixed else None}
        request = json.dumps(asked).encode() + b"\n"
        line = b""
        for _ in range(TRIES):
            with contextlib.suppress(_Killed):
                line = self._answer(request)
                break
        if not line:
            return Judgement(False, "UNREADABLE", "decoding it took too long, or broke the decoder")
        answer = json.loads(line)
        return Judgement(**{**answer, "crop": Crop(**answer["crop"]) if answer["crop"] else None})

    def _answer(self, request: bytes) -> bytes:
        """A line; empty where none comes, and then the process has ended. _Killed: by a signal that is not ours."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it ended between two pictures, which is no picture's fault
        process = self._process = self._process or _spawned()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request)
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._patience)
        line = process.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            return line
        if ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._patience)
        ended_with = process.poll()
        self.close()
        if ended_with is not None and ended_with < 0 and ended_with != -signal.SIGXCPU:  # its own limit on computing
            raise _Killed
        return b""

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class _Killed(Exception):
    """A signal ended the process."""


def _spawned() -> subprocess.Popen[bytes]:
    # Nothing of our environment, so nothing secret; it ends with its input, so with us.
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    command = [sys.executable, "-m", "trainer.engine.pictures"]
    null = subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=null, env=environment
    )

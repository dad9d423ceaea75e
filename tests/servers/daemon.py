"""A process of ours that says by a file when it is ready: what gateway, trainer and `tunesmith up` have in common."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

START_LIMIT = 120.0  # seconds; a cold torch import on a busy machine takes ten
STOP_LIMIT = 60.0  # seconds


class Daemon:
    """One process.

    Args:
        folder: For its log and its ready file; made if it is not there.
        arguments: Of the Python interpreter.
        environment: Added to ours.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ready: dict[str, Any] = {}  # what the newest process wrote
        self.ready_file = folder / "ready.json"
        self._log_file = folder / "log.txt"
        self._command = [sys.executable, *arguments]
        #: Of the next process.
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_THREADS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self, *, wait: bool = True) -> None:
        """Starts it, and waits until it is ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; the message has what it said.
        """
        self.ready_file.unlink(missing_ok=True)
        environment = {"TUNESMITH_READY_FILE": str(self.ready_file), **self.environment}
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Waits for the ready file. A file, not an event: there is no other way to hear of another process."""
        deadline = time.monotonic() + START_LIMIT
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                code = self.process.poll()
                self.kill()
                raise RuntimeError(f"{self._command} is not ready (exit code {code}):\n{self.log()}")
            time.sleep(0.05)
        self.reread()

    def reread(self) -> None:
        """Reads the ready file again: process ids change when something was restarted."""
        self.ready = json.loads(self.ready_file.read_text())

    def stop(self) -> int:
        """SIGTERM, and waits for the end. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL: as when the power goes."""
        self.process.kill()
        self.process.wait()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The newest process."""
        assert self._process is not None, "start() comes first"
        return self._process

    def log(self) -> str:
        """What it and its children have said so far."""
        return self._log_file.read_text(errors="replace")

"""Runs `tunesmith up` in a folder of its own, on free ports, for as long as a `with` block lasts.

Called by `__main__`. Knows the command line and the ready file; what the service does with HTTP stands in `client`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from examples.demo.failure import DemoFailed

TUNESMITH = Path(sys.executable).with_name("tunesmith")  # the command that the project installs, beside our Python
START_LIMIT = 180.0  # seconds; the first import of torch on a cold disk takes long
STOP_LIMIT = 60.0  # seconds; `up` itself gives its trainer 25 and its gateway 10


class Service:
    """One gateway on SQLite and one trainer, on the GPU where there is one.

    Args:
        folder: Where all of it is kept. Nothing of it is needed afterwards.
        log: A file that gets what the service says.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        free = "127.0.0.1:0"  # port 0: one that nobody uses
        self._ready_file = folder / "ready.json"
        self._command = [str(TUNESMITH), "up", "--data", str(folder / "data"), "--ready-file", str(self._ready_file)]
        self._command += ["--http", free, "--grpc", free, "--metrics", free]
        self._log = log
        self.url = ""
        """Of the HTTP API; known once it has started."""
        self.key = ""
        """The API key that `up` made."""

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603  # our own command
        try:
            self._wait_ready()
        except BaseException:  # Ctrl-C too: nothing is to stay behind
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _wait_ready(self) -> None:
        """`up` writes the file once its gateway and its trainer serve: where they are, and the key."""
        deadline = time.monotonic() + START_LIMIT
        while not self._ready_file.exists():
            if self._process.poll() is not None:
                raise DemoFailed("`tunesmith up` could not start; it has said why in its log")
            if time.monotonic() > deadline:
                raise DemoFailed(f"`tunesmith up` was not ready within {START_LIMIT:.0f} s")
            time.sleep(0.05)
        ready = json.loads(self._ready_file.read_text())
        self.url, self.key = ready["http"], ready["api_key"]

    def _stop(self) -> None:
        """SIGTERM, then waits until `up` has ended its children and itself."""
        # A second Ctrl-C must not leave half of it running.
        patience = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.terminate()
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel ends the children with it
            self._process.wait()
        finally:
            signal.signal(signal.SIGINT, patience)

"""Keeps one child process running: starts it, waits until it is ready, restarts with back-off what dies, ends it.
Called by `tunesmith up`; knows nothing of gateways or trainers."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

FIRST_DELAY = 0.5  # seconds before the first restart; doubles with each
LONGEST_DELAY = 30.0  # seconds
STEADY = 60.0  # seconds of life after which a death counts as the first again
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildFailed(Exception):
    """A child has refused to start: it has said why on its standard error, and another try would not help."""


class Child:
    """One process that is to be there for as long as `run` is awaited.

    Args:
        name: For people, in the log.
        arguments: Of the Python interpreter that runs us, such as ("-m", "gateway").
        environment: All of it. Read again at each start, so what the first start has learned (a port) can be kept.
        ready_file: The child writes JSON there once it serves.
        inherited: A file descriptor that it keeps open, so that a lock on it lasts as long as any child.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Callable[[], Mapping[str, str]],
        ready_file: Path,
        inherited: int,
        grace: float,
    ) -> None:
        self.name = name
        self.pid: int | None = None  # written by run; None while there is no process
        self.ready: dict[str, Any] = {}  # what the newest process wrote; written by run
        self._arguments = arguments
        self._environment = environment
        self._ready_file = ready_file
        self._inherited = inherited
        self._grace = grace
        self._served = False  # whether any process of this child has ever been ready

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Runs until cancelled; then ends the process and returns when it is gone. Calls `on_ready` after each start.

        Raises:
            ChildFailed: The first process ended with an exit code before it was ready: a setting is wrong.
        """
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        while True:
            started = loop.time()
            code = await self._live(on_ready)
            if code > 0 and not self._served:
                raise ChildFailed(f"{self.name} could not start ({_said(code)}); what it said stands above")
            if loop.time() - started > STEADY:
                delay = FIRST_DELAY
            log.warning(
                f"{self.name} has ended with {_said(code)}; it starts again in {delay:g} s",
                action="child_restart",
                child=self.name,
                code=code,
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _live(self, on_ready: Callable[[], None]) -> int:
        """One process, from its start to its end. Cancelled, ends it first."""
        self._ready_file.unlink(missing_ok=True)
        self.ready = {}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            env=dict(self._environment()),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(self._inherited,),
            # A session of its own: the terminal's Ctrl-C reaches `up` alone, which ends its children in order.
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
        self.pid = process.pid
        waiting = asyncio.create_task(self._announce(on_ready))
        try:
            return await process.wait()
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            await self._end(process)
            self.pid = None

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        while not self._ready_file.exists():  # noqa: ASYNC110  (another process's file, no event of ours)
            await asyncio.sleep(0.05)  # the child renames it into place, so what exists is whole
        self.ready = json.loads(self._ready_file.read_text())
        self._served = True
        on_ready()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Waits for the process to end by itself after SIGTERM; SIGKILL after the grace time."""
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace):
                await process.wait()
        except TimeoutError:
            log.warning(
                f"{self.name} did not end within {self._grace:g} s and is killed", action="child_kill", child=self.name
            )
            process.kill()
            await process.wait()


def _die_with_parent(parent: int) -> None:
    """The kernel kills the child when `up` dies, however it dies: nothing is left behind to hold ports or the GPU."""
    if sys.platform == "linux":  # elsewhere an orphan has to be ended by hand
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def _said(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

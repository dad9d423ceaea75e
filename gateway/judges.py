"""A small pool of worker processes that judge pictures. Called by the asset servicer; knows how a worker dies, not what
a picture is: that is `gateway.pictures`, which each worker runs.

A hostile file can at worst end its worker. The worker is replaced, the file is refused, and nothing else is hurt:
workers have limits on memory, computing and writing, no environment, and so none of the gateway's secrets.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import structlog

from gateway import pictures
from gateway.pictures import Judgement, Limits

TIMEOUT = 30.0  # seconds for one picture by the clock on the wall; its computing is limited to a third of that
TRIES = 2  # the first worker may have been ended by something that has nothing to do with the picture

log = structlog.get_logger(__name__)


class WorkerDied(Exception):
    """The worker ended or fell silent before it answered."""


class Judges:
    """Judges several pictures at a time, each in a worker of its own. Workers start when they are first needed."""

    def __init__(self, limits: Limits, *, workers: int = 2, timeout: float = TIMEOUT) -> None:
        self._limits = limits
        self._timeout = timeout
        # Slots, each with a worker or with None where one is still to be started. Who holds a slot owns its worker.
        self._slots: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._slots.put_nowait(None)
        self._workers = workers

    async def judge(self, path: Path) -> Judgement:
        """Judges one file; waits for a free worker. Answers a refusal where no worker survives it."""
        for left in reversed(range(TRIES)):
            try:
                return await self._ask(path)
            except WorkerDied as exc:
                log.warning(f"A picture ended its worker: {exc}", action="judge_died", tries_left=left)
        details = f"it could not be read within {pictures.CPU_SECONDS} s and {pictures.MEMORY // 2**20} MiB of memory"
        return Judgement(False, "UNREADABLE", details)

    async def close(self) -> None:
        """Waits until no picture is being judged, and ends the workers."""
        for _ in range(self._workers):
            await dismiss(await self._slots.get())

    async def _ask(self, path: Path) -> Judgement:
        worker = await self._slots.get()
        answered = False
        try:
            if worker is None or worker.returncode is not None:
                worker = await start(self._limits)
            async with asyncio.timeout(self._timeout):
                judgement = await exchange(worker, path)
            answered = True
            return judgement
        except TimeoutError as exc:
            raise WorkerDied(f"no answer within {self._timeout} s") from exc
        finally:
            # Also where the caller went away: a worker that still owes an answer would give it to the next one.
            if not answered:
                await asyncio.shield(dismiss(worker))
            self._slots.put_nowait(worker if answered else None)


async def start(limits: Limits) -> Process:
    """Starts a worker. Its file is run as a script: -I keeps this package's folder, with its `http`, off its path."""
    arguments = ["-I", pictures.__file__, json.dumps(asdict(limits))]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE, env=environment)


async def exchange(worker: Process, path: Path) -> Judgement:
    """Sends a path and reads the judgement."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if worker.stdin.is_closing():  # uvloop's write would call it a RuntimeError
        raise WorkerDied(f"it had ended with {await worker.wait()} before it was asked")
    try:
        worker.stdin.write(json.dumps(str(path)).encode() + b"\n")
        await worker.stdin.drain()
    except (BrokenPipeError, ConnectionResetError) as exc:
        raise WorkerDied("it was gone already") from exc
    line = await worker.stdout.readline()
    if not line.endswith(b"\n"):
        raise WorkerDied(f"it ended with {await worker.wait()}")
    return Judgement(**json.loads(line))


async def dismiss(worker: Process | None) -> None:
    """Ends a worker and waits for its end."""
    if worker is None:
        return
    with suppress(ProcessLookupError):
        worker.kill()
    await worker.wait()
    if worker.stdin is not None:
        worker.stdin.close()

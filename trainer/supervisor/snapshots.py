"""Uploads an attempt's snapshots beside its training, and reports each once it is there. Called by the attempt; knows
no stream.

A snapshot is reported only after its upload, so that nothing else of the attempt waits behind it. One that is not yet
there when the attempt ends is of no use to anyone and dropped; but a trainer that leaves waits for it, for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import structlog

from trainer.pipe import Snapshotted
from trainer.supervisor.leases import LeaseLost
from trainer.supervisor.urls import UrlRefused

log = structlog.get_logger()


class Snapshots:
    """Of one attempt."""

    def __init__(
        self,
        upload: Callable[[str, Path], Awaitable[float]],
        report: Callable[[Snapshotted, str], Awaitable[None]],
        uploaded: Callable[[float], None],
    ) -> None:
        """upload: puts a file under a name, however long that takes; returns the seconds that it took of the network.
        report: of a snapshot and its name. uploaded: is told these seconds of each, 0 where nothing came of it.
        """
        self._upload = upload
        self._report = report
        self._uploaded = uploaded
        self._newest: Snapshotted | None = None  # taken by the task; a newer one takes its place
        self._task: asyncio.Task[None] | None = None

    def add(self, taken: Snapshotted) -> None:
        """The engine has written one."""
        self._newest = taken  # one that still waited lies in the attempt's folder, and goes with it
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def settle(self, seconds: float) -> None:
        """Waits until all are reported, but no longer; then drops the rest."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
        await self.drop()

    async def drop(self) -> None:
        """Ends what is under way: nothing more is reported."""
        self._newest = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while (taken := self._newest) is not None:
            self._newest = None
            seconds = await self._put(taken)
            await asyncio.to_thread(Path(taken.path).unlink, missing_ok=True)
            self._uploaded(seconds)

    async def _put(self, taken: Snapshotted) -> float:
        name = f"snapshots/{taken.step}.safetensors"
        try:
            seconds = await self._upload(name, Path(taken.path))
            await self._report(taken, name)
        except LeaseLost:
            log.info("A snapshot is of no use: its lease is lost", tune_id=taken.tune_id, step=taken.step)
        except (UrlRefused, OSError, httpx.InvalidURL) as exc:
            # It costs the steps since the one before, should the trainer be lost; not the tune.
            log.error("A snapshot cannot be uploaded", tune_id=taken.tune_id, step=taken.step, why=str(exc))
        else:
            return seconds
        return 0.0

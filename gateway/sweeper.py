"""Deletes objects that nobody needs any more, in rounds. One of the server's tasks; which ones those are, the store
knows, and why that is safe beside uploads, commits and other gateways' sweepers (store/leftovers)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import structlog

from store.database import Database
from store.leftovers import leftovers
from store.objects import Objects

DAY = 24 * 3600.0  # seconds; the contract's time for an upload
PERIOD = 3600.0  # seconds between two rounds
BATCH = 500  # keys asked for at a time

log = structlog.get_logger(__name__)


class Sweeper:
    """Goes round. Several gateways may: an object that is gone already is no fault.

    Args:
        leftover_seconds: What nobody needs lies for so long before it is deleted.
        upload_seconds: For so long an upload may wait to be completed.
        period_seconds: Between two rounds.
    """

    def __init__(
        self,
        database: Database,
        objects: Objects,
        *,
        leftover_seconds: float = DAY,
        upload_seconds: float = DAY,
        period_seconds: float = PERIOD,
    ) -> None:
        self._database = database
        self._objects = objects
        self._leftover_seconds = leftover_seconds
        self._upload_seconds = upload_seconds
        self._period_seconds = period_seconds

    async def run(self) -> None:
        """Sweeps again and again until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                if swept:
                    log.info(f"{swept} objects that nobody needs were deleted", action="objects_swept", objects=swept)
            except Exception as exc:  # a store that is away is no reason to end the gateway; there is a next round
                log.warning(f"Old objects could not be swept: {exc}", action="sweep_failed")
            await asyncio.sleep(self._period_seconds)

    async def sweep(self) -> int:
        """One round; answers how many objects were deleted."""
        swept = 0
        async for found in self._old():
            now = time.time()
            ages = {key: now - modified_at for key, modified_at in found.items()}
            for key in await leftovers(self._database, ages, self._upload_seconds):
                # Not what has been put there since it was listed: a caller may upload once more.
                if await self._objects.delete_if_older(key, found[key]):
                    log.debug(f"{key} was deleted", action="object_swept", key=key)
                    swept += 1
        return swept

    async def _old(self) -> AsyncIterator[dict[str, float]]:
        """Keys that have lain for long enough, each with when it was written, a batch at a time."""
        batch: dict[str, float] = {}
        async for key, stat in self._objects.list(""):
            if time.time() - stat.modified_at >= self._leftover_seconds:
                batch[key] = stat.modified_at
            if len(batch) == BATCH:
                yield batch
                batch = {}
        if batch:
            yield batch

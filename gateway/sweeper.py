"""Deletes objects that nobody needs any more, once an hour. One of the server's tasks; which ones those are, the store
knows (store/leftovers)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import structlog

from store.database import Database
from store.leftovers import leftovers
from store.objects import Objects

AGE = 24 * 3600.0  # seconds that an object lies before it is looked at: the contract's day for an upload
PERIOD = 3600.0  # seconds between two rounds
BATCH = 500  # keys asked for at a time

log = structlog.get_logger(__name__)


class Sweeper:
    """Goes round. Several gateways may: an object that is gone already is no fault."""

    def __init__(self, database: Database, objects: Objects, *, age_seconds: float = AGE) -> None:
        self._database = database
        self._objects = objects
        self._age_seconds = age_seconds

    async def run(self) -> None:
        """Sweeps again and again until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                if swept:
                    log.info(f"{swept} objects that nobody needs were deleted", action="objects_swept", objects=swept)
            except Exception as exc:  # a store that is away is no reason to end the gateway; there is a next round
                log.warning(f"Old objects could not be swept: {exc}", action="sweep_failed")
            await asyncio.sleep(PERIOD)

    async def sweep(self) -> int:
        """One round; answers how many objects were deleted."""
        swept = 0
        async for keys in self._old():
            for key in await leftovers(self._database, keys):
                await self._objects.delete(key)
                log.debug(f"{key} was deleted", action="object_swept", key=key)
                swept += 1
        return swept

    async def _old(self) -> AsyncIterator[list[str]]:
        """Keys that have lain for long enough, a batch at a time."""
        batch: list[str] = []
        async for key, stat in self._objects.list(""):
            if time.time() - stat.modified_at >= self._age_seconds:
                batch.append(key)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

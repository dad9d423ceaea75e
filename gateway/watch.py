"""Feeds watchers: a tune's events, those of the past first, then each new one, until it has ended. Called by the tune
servicer, and through it by the HTTP shim; knows rows, not messages.

The log itself is the source: a watcher reads on from the last seq that it has sent, so nothing is skipped or sent
twice, whatever wakes it. A wake-up only makes it look sooner; it may be lost, and every 2 s a watcher looks anyway.
Each watcher waits by itself: a slow one holds one page of events and nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import structlog

from store import events, tunes
from store.database import Database
from store.errors import DatabaseAway, NotFound
from store.states import TERMINAL
from store.tables import Event

POLL = 2.0  # seconds; beneath the wake-ups
PAGE = 200  # events read at a time

log = structlog.get_logger(__name__)


class Closing(Exception):
    """This gateway goes away; the watcher should call another one, with the last event's id."""


class Watch:
    """Wakes watchers. One per gateway; `run` is one of the server's tasks."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        # Tune -> its watchers' bells. Written by follow, rung by run and close; all on the event loop.
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._closing = False

    @property
    def watchers(self) -> int:
        """How many are waiting or being fed."""
        return sum(map(len, self._bells.values()))

    async def run(self) -> None:
        """Passes the store's wake-ups on, until cancelled."""
        async with self._database.wakeups.subscribe("tune") as changed:
            async for tune_id in changed:
                for bell in self._bells.get(tune_id, ()):
                    bell.set()

    def close(self) -> None:
        """Ends every watcher with Closing."""
        self._closing = True
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    async def follow(self, tenant_id: str, tune_id: str, after_seq: int = 0) -> AsyncGenerator[Event]:
        """The tune's events with a higher seq, as they come; ends after that of its final state.

        Raises:
            NotFound: Before the first event: the tenant has no such tune.
            Closing: This gateway goes away.
        """
        await tunes.find(self._database, tenant_id, tune_id)
        bell = asyncio.Event()
        self._bells.setdefault(tune_id, set()).add(bell)
        try:
            while True:
                bell.clear()
                # The state is read before the log: an end that comes between the two is found with the next look.
                ended = await self._has_ended(tenant_id, tune_id)
                page = await self._page(tune_id, after_seq)
                for event in page or ():
                    yield event
                    after_seq = event.seq
                if page is not None and len(page) == PAGE:
                    continue
                if ended and page is not None:
                    return
                await self._wait(bell)
        finally:
            self._bells[tune_id].discard(bell)
            if not self._bells[tune_id]:
                del self._bells[tune_id]

    async def _has_ended(self, tenant_id: str, tune_id: str) -> bool:
        try:
            return (await tunes.find(self._database, tenant_id, tune_id)).state in TERMINAL
        except NotFound:
            return True  # deleted while it was watched
        except DatabaseAway:
            return False

    async def _page(self, tune_id: str, after_seq: int) -> list[Event] | None:
        """The next events; None while the database is away: a watcher outlives that, and there may be more of them."""
        try:
            return await events.list_events(self._database, tune_id, after_seq, PAGE)
        except DatabaseAway as exc:
            log.info(f"A watcher waits for the database: {exc}", action="watch_waits", tune_id=tune_id)
            return None

    async def _wait(self, bell: asyncio.Event) -> None:
        if self._closing:
            raise Closing("this gateway goes away; watch on through another one")
        try:
            async with asyncio.timeout(self._poll_seconds):
                await bell.wait()
        except TimeoutError:
            return
        if self._closing:
            raise Closing("this gateway goes away; watch on through another one")

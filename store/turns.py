"""Lets so many at a time through, the urgent ones first. Used by the database in front of its connections; knows no
SQL.

A pool that runs dry makes each caller wait inside it, and a heartbeat waits with them. So everybody waits here
instead, before taking a connection, and a pool never meets more than it has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A semaphore with two queues. All on one event loop."""

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Waits for a permit and holds it. First come, first served, among the urgent and then among the others."""
        await self._acquire(self._urgent if urgent else self._others)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, queue: deque[asyncio.Future[None]]) -> None:
        if self._free > 0:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._release()  # the permit was handed over in the moment of the cancellation
            raise

    def _release(self) -> None:
        for queue in (self._urgent, self._others):
            while queue:
                waiting = queue.popleft()
                if not waiting.done():
                    waiting.set_result(None)
                    return
        self._free += 1

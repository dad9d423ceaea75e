"""Memory for bodies on their way into the object store: how much they may take at once, and one tenant's share of it.
Held by objects around each PUT; knows no request.

A slow upload holds what it has for as long as its caller likes, at a kilobyte a second. So a tenant may hold half of
all, and what it holds up beyond that are uploads of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from gateway.status import Refusal

WAIT = 10.0  # seconds for room; who waits longer is better told
RETRY = 5.0  # seconds after which who found none may try again; a guess


@dataclass(eq=False)
class _Waiter:
    """An upload that has no room yet."""

    owner: str
    size: int
    let_in: asyncio.Future[None]


class Room:
    """What all uploads of one gateway share.

    Args:
        size_bytes: For all of them. None: there is no bound.
        wait_seconds: That one waits before it is refused.
        refused: Told of every refusal.
    """

    def __init__(
        self,
        size_bytes: int | None = None,
        *,
        wait_seconds: float = WAIT,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._size_bytes = size_bytes
        self._wait_seconds = wait_seconds
        self._refused = refused
        #: Owner -> bytes; no owner with none.
        self._held: Counter[str] = Counter()
        #: Who waits, in the order in which they came.
        self._waiting: dict[_Waiter, None] = {}

    @asynccontextmanager
    async def held(self, owner: str, size: int) -> AsyncIterator[None]:
        """Around an upload. Small ones pass by a large one that does not fit.

        Raises:
            Refusal: There was no room for it in time.
        """
        await self._enter(_Waiter(owner, size, asyncio.get_running_loop().create_future()))
        try:
            yield
        finally:
            self._leave(owner, size)

    async def _enter(self, waiter: _Waiter) -> None:
        self._waiting[waiter] = None
        self._let_in()
        try:
            async with asyncio.timeout(self._wait_seconds):
                await asyncio.shield(waiter.let_in)
        except (TimeoutError, asyncio.CancelledError) as exc:
            if waiter.let_in.done():  # at this very moment
                self._leave(waiter.owner, waiter.size)
            else:
                del self._waiting[waiter]
            if isinstance(exc, TimeoutError):
                self._refused()
                raise self._busy(waiter) from exc
            raise

    def _leave(self, owner: str, size: int) -> None:
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]
        self._let_in()

    def _let_in(self) -> None:
        """Lets in who waits and fits."""
        for waiter in [waiter for waiter in self._waiting if self._fits(waiter)]:
            if self._fits(waiter):  # beside those just let in
                del self._waiting[waiter]
                self._held[waiter.owner] += waiter.size
                waiter.let_in.set_result(None)

    def _fits(self, waiter: _Waiter) -> bool:
        if self._size_bytes is None:
            return True
        return self._fits_share(waiter) and self._held.total() + waiter.size <= self._size_bytes

    def _fits_share(self, waiter: _Waiter) -> bool:
        return self._size_bytes is None or self._held[waiter.owner] + waiter.size <= self._size_bytes // 2

    def _busy(self, waiter: _Waiter) -> Refusal:
        whose = "Uploads have all" if self._fits_share(waiter) else "Your tenant's uploads have their half of"
        sentence = f"{whose} the memory that uploads may take here; try again when some have ended."
        return Refusal(grpc.StatusCode.UNAVAILABLE, "UPLOADS_BUSY", sentence, retry_after_seconds=RETRY)

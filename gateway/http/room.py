"""Memory for bodies on their way into the object store: how much they may take at once, and one tenant's share of it.
Held by objects around each PUT; knows no request.

A slow upload holds what it has for as long as its caller likes, at a kilobyte a second. So a tenant may hold half of
all, and what it holds up beyond that are uploads of its own.

An upload whose length is not said begins with little and takes the rest once it turns out to be large. Such uploads
would all wait for one another if they held everything between them. So one begins only where all that it may want fits
beside what others hold that may want more: then whichever began last can go on as soon as those have ended that want
no more, and the one before it after that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc

from gateway.status import Refusal

WAIT = 10.0  # seconds for room; who waits longer is better told
RETRY = 5.0  # seconds after which who found none may try again; a guess
WAITING = 64  # uploads of one owner that wait to begin: the server holds the first bytes of each, 64 KiB and more


@dataclass(eq=False)
class _Upload:
    """One of those that share."""

    owner: str
    most: int
    """Bytes that it may come to hold."""
    held: int = 0
    """Bytes that it holds."""
    wanted: int = 0
    """Bytes that it holds or waits to hold, in all."""
    let_in: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it holds what it wanted."""

    def growing(self) -> int:
        """Bytes that it holds and might not let go of before it has got more."""
        return self.held if self.held < self.most else 0


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
        #: Owner -> bytes, None -> those of all; no owner with none.
        self._held: Counter[str | None] = Counter()
        #: The same, of uploads that may still want more.
        self._growing: Counter[str | None] = Counter()
        # Who waits, in the order in which they came. None of them fits: whatever makes room lets in at once.
        #: For more than they hold.
        self._waiting_for_more: dict[_Upload, None] = {}
        #: To begin.
        self._waiting: dict[_Upload, None] = {}
        #: Owner -> how many wait to begin; no owner with none.
        self._waiting_of: Counter[str] = Counter()

    @asynccontextmanager
    async def held(
        self, owner: str, size: int, most: int | None = None
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Around an upload. Small ones pass by a large one that does not fit.

        Args:
            owner: Whose it is.
            size: Bytes that it takes.
            most: Bytes that it takes once it has called what is yielded, which waits for them too.

        Raises:
            Refusal: There was no room for it in time, or too many of the owner's wait already.
        """
        upload = _Upload(owner, size if most is None else most)
        try:
            await self._enter(upload, size)
            yield partial(self._enter, upload, upload.most)
        finally:
            if upload.held:
                self._hold(upload, 0)
                self._let_in()

    async def _enter(self, upload: _Upload, wanted: int) -> None:
        upload.wanted = wanted
        if not self._fits(upload):
            await self._wait(upload)
        elif upload.held:
            self._hold(upload, wanted)
            self._let_in()  # who begins need not leave room for it any more
        else:
            self._hold(upload, wanted)

    async def _wait(self, upload: _Upload) -> None:
        upload.let_in.clear()
        if upload.held:
            self._waiting_for_more[upload] = None
        elif self._waiting_of[upload.owner] < WAITING:
            self._waiting[upload] = None
            self._waiting_of[upload.owner] += 1
        else:
            self._refused()
            raise _busy(f"{WAITING} of your tenant's uploads wait for memory already")
        try:
            async with asyncio.timeout(self._wait_seconds):
                await upload.let_in.wait()
        except TimeoutError as exc:
            if not upload.let_in.is_set():  # at this very moment
                self._refused()
                whose = "Uploads have all" if self._fits_share(upload) else "Your tenant's uploads have their half of"
                raise _busy(f"{whose} the memory that uploads may take here") from exc
        finally:
            self._leave_line(upload)

    def _leave_line(self, upload: _Upload) -> None:
        self._waiting_for_more.pop(upload, None)
        if upload in self._waiting:
            del self._waiting[upload]
            self._waiting_of -= Counter([upload.owner])  # drops who has none

    def _let_in(self) -> None:
        """Lets in who waits and fits: first who holds some already, and holds up others with it."""
        for upload in [*self._waiting_for_more, *self._waiting]:
            if self._fits(upload):  # beside those just let in
                self._leave_line(upload)
                self._hold(upload, upload.wanted)
                upload.let_in.set()

    def _hold(self, upload: _Upload, size: int) -> None:
        was_held, was_growing = upload.held, upload.growing()
        upload.held = size
        for whose in (upload.owner, None):
            self._held[whose] += size - was_held
            self._growing[whose] += upload.growing() - was_growing
            if not self._held[whose]:
                del self._held[whose], self._growing[whose]

    def _fits(self, upload: _Upload) -> bool:
        return self._fits_share(upload) and self._fits_in(self._size_bytes, None, upload)

    def _fits_share(self, upload: _Upload) -> bool:
        share = None if self._size_bytes is None else self._size_bytes // 2
        return self._fits_in(share, upload.owner, upload)

    def _fits_in(self, bound: int | None, whose: str | None, upload: _Upload) -> bool:
        if bound is None:
            return True
        may_go_on = upload.wanted == upload.most or self._growing[whose] + upload.most <= bound
        return may_go_on and self._held[whose] + upload.wanted - upload.held <= bound


def _busy(sentence: str) -> Refusal:
    sentence += "; try again when some have ended."
    return Refusal(grpc.StatusCode.UNAVAILABLE, "UPLOADS_BUSY", sentence, retry_after_seconds=RETRY)

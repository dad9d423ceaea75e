"""Remembers for some seconds whom a secret belongs to, so that not every request asks the database.

Called by the interceptors; knows neither gRPC nor tables. A revoked or expired key is taken until its entry ends, and
not once more: shortly before that the owner is looked up anew while the old answer still serves, and after it whoever
comes waits for one look-up that they share.

Secrets that nobody knows are the door for strangers. From each place only so many wrong ones are looked up in a second,
and of all unknown ones only a few at a time, so that they take neither the database nor its connections from others.
Known secrets wait for neither: behind one proxy they go on while a stranger tries keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from gateway.rates import Buckets

T = TypeVar("T")

MOST = 10_000  # entries
WRONG = 10.0  # wrong secrets a second from one place
EARLY = 1.0  # seconds before its end that an entry is looked up anew, so that no request waits for it
STRANGERS = 4  # unknown secrets that are looked up at a time; a pool has at least ten connections


class TooManyWrong(Exception):
    """From that place came too many wrong secrets lately; this one was not looked up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        #: Until the next one is.
        self.seconds = seconds


class Credentials(Generic[T]):
    """Who the secrets of one kind belong to."""

    def __init__(
        self,
        authenticate: Callable[[str], Awaitable[T | None]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticate = authenticate
        self._seconds = seconds
        self._clock = clock
        #: SHA-256 of the secret -> (owner, when the entry ends). Unknown secrets would push out known ones: not kept.
        self._known: OrderedDict[bytes, tuple[T, float]] = OrderedDict()
        #: Of known secrets, by the same: one look-up at a time, so that no burst follows an entry's end.
        self._asking: dict[bytes, asyncio.Task[T | None]] = {}
        self._wrong = Buckets(clock)
        self._strangers = asyncio.Semaphore(STRANGERS)

    async def owner(self, secret: str, place: str = "") -> T | None:
        """Returns whom the secret belongs to; None where nobody knows it.

        Args:
            secret: As it was shown.
            place: From where.

        Raises:
            TooManyWrong: From there came too many that nobody knows.
        """
        digest = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(digest)
        if known is None:
            return await self._unknown(secret, digest, place)
        owner, end = known
        now = self._clock()
        if now < end - min(EARLY, self._seconds / 2):
            return owner
        asking = self._anew(secret, digest)
        # Shielded: whoever started it may leave, and the others wait on.
        return owner if now < end else await asyncio.shield(asking)

    async def _unknown(self, secret: str, digest: bytes, place: str) -> T | None:
        async with self._strangers:
            # Looked at once it is its turn: what waited together does not get in together.
            wait = self._wrong.wait(place, WRONG)
            if wait > 0:
                raise TooManyWrong(wait)
            owner = await self._ask(secret, digest)
        if owner is None:
            self._wrong.take(place, WRONG)
        return owner

    def _anew(self, secret: str, digest: bytes) -> asyncio.Task[T | None]:
        """The look-up of a secret that was known, which may be under way."""
        if digest not in self._asking:
            asking = self._asking[digest] = asyncio.create_task(self._ask(secret, digest))
            asking.add_done_callback(partial(self._asked, digest))
        return self._asking[digest]

    def _asked(self, digest: bytes, asking: asyncio.Task[T | None]) -> None:
        del self._asking[digest]
        if not asking.cancelled():
            asking.exception()  # where nobody waited, nobody hears of it: the old answer serves to its end

    async def _ask(self, secret: str, digest: bytes) -> T | None:
        since = self._clock()  # what is revoked from now on, the answer may not know
        owner = await self._authenticate(secret)
        self._known.pop(digest, None)
        if owner is not None:
            self._known[digest] = (owner, since + self._seconds)
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        return owner

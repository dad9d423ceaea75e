"""Remembers for some seconds whom a secret belongs to, so that not every request asks the database.

Called by the interceptors; knows neither gRPC nor tables. A revoked key is taken until its entry ends.

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
from typing import Generic, TypeVar

from gateway.rates import Buckets

T = TypeVar("T")

MOST = 10_000  # entries
WRONG = 10.0  # wrong secrets a second from one place
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
        #: SHA-256 of the secret -> (owner, when to ask again). Unknown secrets would push out known ones: not kept.
        self._known: OrderedDict[bytes, tuple[T, float]] = OrderedDict()
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
        now = self._clock()
        if known is not None and now < known[1]:
            return known[0]
        if known is None:
            owner = await self._unknown(secret, place)
        else:
            # One asks; whoever comes meanwhile lives with the old answer, so that no burst follows an entry's end.
            self._known[digest] = (known[0], now + 1.0)
            owner = await self._authenticate(secret)
        self._keep(digest, owner)
        return owner

    async def _unknown(self, secret: str, place: str) -> T | None:
        async with self._strangers:
            # Looked at once it is its turn: what waited together does not get in together.
            wait = self._wrong.wait(place, WRONG)
            if wait > 0:
                raise TooManyWrong(wait)
            owner = await self._authenticate(secret)
        if owner is None:
            self._wrong.take(place, WRONG)
        return owner

    def _keep(self, digest: bytes, owner: T | None) -> None:
        self._known.pop(digest, None)
        if owner is None:
            return
        self._known[digest] = (owner, self._clock() + self._seconds)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

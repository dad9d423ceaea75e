"""Remembers for some seconds whom a secret belongs to, so that not every request asks the database.

Called by the interceptors; knows neither gRPC nor tables. A revoked key is taken until its entry ends.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 10_000  # entries


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

    async def owner(self, secret: str) -> T | None:
        """Returns whom the secret belongs to; None where nobody knows it."""
        digest = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(digest)
        now = self._clock()
        if known is not None and now < known[1]:
            return known[0]
        if known is not None:
            # One asks; whoever comes meanwhile lives with the old answer, so that no burst follows an entry's end.
            self._known[digest] = (known[0], now + 1.0)
        owner = await self._authenticate(secret)
        self._keep(digest, owner)
        return owner

    def _keep(self, digest: bytes, owner: T | None) -> None:
        self._known.pop(digest, None)
        if owner is None:
            return
        self._known[digest] = (owner, self._clock() + self._seconds)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

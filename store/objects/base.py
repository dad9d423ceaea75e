"""The storage seam. Called by gateway/assets, sessions and http/objects; implementations beside it. Knows no rows.

Keys are relative paths of [A-Za-z0-9._-] parts, such as "incoming/assets/asset_x". What is written appears whole or
not at all. A store that does not answer, or refuses us, is ObjectsAway in every call.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Stat:
    """What is known of an object without reading it."""

    size_bytes: int
    """Its size."""
    modified_at: float
    """When it was written, or moved there: seconds since 1970, by the store's clock."""


class ObjectMissing(LookupError):
    """There is no such object."""


class ObjectReplaced(ObjectMissing):
    """Another object has taken its place while it was read: what was there is gone."""


class TooLarge(ValueError):
    """The object exceeds the size that was allowed."""


def checked(key: str) -> str:
    """The key itself; ValueError where it is none, such as one that leaves its folder."""
    if len(key) > 1024 or not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not an object key: it wants parts of [A-Za-z0-9._-] that do not begin with a dot")
    return key


class Objects(ABC):
    """A place for bytes."""

    #: A write holds no more than `write_memory` says of so many bytes until as many have come, however many follow.
    #: None: from its beginning it may hold what it says of them all.
    gathered_bytes: ClassVar[int | None] = None

    @abstractmethod
    async def sign_get(self, key: str, expires_seconds: float = 3600) -> str:
        """A URL that downloads the object with no authorization header; the expiry is checked when the request
        starts.
        """

    @abstractmethod
    async def sign_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """A URL that uploads the object, likewise. It leads to the gateway, which takes bodies of unknown length and
        none larger than `most_bytes`. `owner`: the tenant whose share of the gateway's memory it takes.
        """

    @abstractmethod
    async def sign_direct_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """The same, but leading to the store itself where that takes uploads. Bodies have a Content-Length then, and
        nobody holds them to `most_bytes`: for those who know what they send and are asked what they have sent.
        """

    @abstractmethod
    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from start to before end. ObjectMissing; ObjectReplaced where a store cannot go on with it then."""

    @abstractmethod
    async def write(self, key: str, chunks: AsyncIterable[bytes], *, max_bytes: int | None = None) -> tuple[int, str]:
        """Writes the object, durable and whole when this returns. (size, SHA-256 hexadecimal). TooLarge past
        max_bytes.
        """

    @abstractmethod
    def write_memory(self, size: int | None) -> int:
        """Bytes of memory that a write of so many bytes holds at most; None: their number is not known."""

    @abstractmethod
    async def stat(self, key: str) -> int | None:
        """Its size in bytes; None where there is none."""

    async def hash(self, key: str) -> tuple[str, int]:
        """(SHA-256 hexadecimal, size), streamed, off the event loop. ObjectMissing. No thread is held for longer than a
        piece takes: they are few, and everybody's.
        """
        digest, size = hashlib.sha256(), 0
        async with aclosing(self.read(key)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(digest.update, chunk)
                size += len(chunk)
        return digest.hexdigest(), size

    @abstractmethod
    async def move(self, source: str, destination: str) -> None:
        """Moves the object to where nothing is yet. What an earlier call has moved there stays, whatever has come to
        the source since, and the source goes. ObjectMissing: there is neither.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Deletes the object; nothing where there is none."""

    @abstractmethod
    async def delete_if_older(self, key: str, modified_at: float) -> bool:
        """Deletes the object unless one that was written or moved there after `modified_at` has taken its place.
        Whether it did.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Stat]]:
        """Every object whose key begins so."""

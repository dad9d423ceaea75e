"""An upload's bytes on their way into a store: gathered, counted and hashed as they pass. Called by both stores."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from store.objects.base import TooLarge

CHUNK = 1024 * 1024  # bytes: large enough to pay for the hop to a thread, small enough to keep memory flat


class Counted:
    """Yields pieces of about CHUNK. Hashing is done in a thread: the event loop never waits for it."""

    def __init__(self, chunks: AsyncIterable[bytes], max_bytes: int | None) -> None:
        self._chunks = chunks
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Each piece once it has been counted. TooLarge past max_bytes."""
        async for chunk in gathered(self._chunks):
            self._size += len(chunk)
            if self._max_bytes is not None and self._size > self._max_bytes:
                raise TooLarge(f"the object is larger than {self._max_bytes} bytes")
            await asyncio.to_thread(self._digest.update, chunk)
            yield chunk

    def sum(self) -> tuple[int, str]:
        """(size, SHA-256 hexadecimal) of what has passed."""
        return self._size, self._digest.hexdigest()


async def gathered(chunks: AsyncIterable[bytes], size: int = CHUNK) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least `size`, but for the last: an upload comes in small ones."""
    pieces: list[bytes] = []
    have = 0
    async for piece in chunks:
        pieces.append(piece)
        have += len(piece)
        if have >= size:
            yield b"".join(pieces)
            pieces, have = [], 0
    if pieces:
        yield b"".join(pieces)

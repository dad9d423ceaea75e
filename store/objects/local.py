"""Objects in a folder of this host. The gateway serves the signed URLs (gateway/http/objects)."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from store.objects.base import Objects, Stat


class LocalObjects(Objects):
    """A folder. Written atomically: a temporary name, fsync, rename, fsync of the folder."""

    def __init__(self, root: Path, public_url: str, secret: bytes) -> None:
        """`root`: made where it is missing. `public_url`: the gateway's, without a slash at its end. `secret`: signs URLs."""
        raise NotImplementedError

    def verify(self, method: str, key: str, expires: str | int, signature: str) -> bool:
        """Whether the URL was signed by us for this method and key, and has not expired."""
        raise NotImplementedError

    async def sign_get(self, key: str, expires_seconds: float = 3600) -> str:
        """{public_url}/v1/objects/{key}?expires={unix seconds}&signature={HMAC-SHA256 of "GET\\nkey\\nexpires"}."""
        raise NotImplementedError

    async def sign_put(self, key: str, expires_seconds: float = 3600) -> str:
        """As sign_get, for PUT."""
        raise NotImplementedError

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See Objects."""
        raise NotImplementedError

    async def write(self, key: str, chunks: AsyncIterable[bytes], *, max_bytes: int | None = None) -> tuple[int, str]:
        """See Objects."""
        raise NotImplementedError

    async def stat(self, key: str) -> int | None:
        """See Objects."""
        raise NotImplementedError

    async def hash(self, key: str) -> tuple[str, int]:
        """See Objects."""
        raise NotImplementedError

    async def move(self, source: str, destination: str) -> None:
        """See Objects."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """See Objects."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Stat]]:
        """See Objects."""
        raise NotImplementedError

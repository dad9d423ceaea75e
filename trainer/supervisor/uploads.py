"""Puts a file to a signed URL, again and again until it is there. Called by the supervisor; knows no tune."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import structlog

from trainer.supervisor.backoff import Backoff

log = structlog.get_logger()

CHUNK = 1 << 20  # bytes read at once, in a thread


async def upload(client: httpx.AsyncClient, path: Path, fresh_url: Callable[[], Awaitable[str]]) -> float:
    """Returns when the server has taken the file: the seconds that this took of the network, not of waiting for a
    gateway or for an object store that is away. Both are waited for: the lease is kept.

    Each try asks for its own URL, so that none expires while the store is away.
    """
    backoff = Backoff(first=0.5, most=15.0)
    while True:
        url = await fresh_url()
        size = (await asyncio.to_thread(path.stat)).st_size
        started = time.monotonic()
        try:
            response = await client.put(url, content=_bytes(path), headers={"Content-Length": str(size)})
            response.raise_for_status()
        except httpx.HTTPError as exc:
            log.warning("An upload failed and is tried again", path=path.name, problem=f"{type(exc).__name__}: {exc}")
        else:
            return time.monotonic() - started
        await asyncio.sleep(backoff.next())


async def _bytes(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk

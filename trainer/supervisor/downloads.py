"""Fetches pictures, checkpoints and snapshots into a content-addressed cache. Called by attempts; knows no tune.

    cache/ab/abcdef...        one file, named by the SHA-256 of its bytes: what is there is whole and right
    cache/incoming/           what is under way

Bytes are hashed as they come and only a match gets its name, so neither a broken connection nor a lying server leaves
anything behind. A download that broke off goes on where it was, by Range. A file is fetched once, also when several
tunes want it at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

import httpx
import structlog

from trainer.supervisor.backoff import Backoff

log = structlog.get_logger()

PARALLEL = 8  # downloads at the same time
CHUNK = 1 << 20  # bytes hashed and written at once, in a thread
TRIES = 3  # wrong answers: bytes that are not the file's, or a URL that is refused though it is fresh
PATIENCE = 600.0  # seconds without a byte that a server which is away is waited for: that is no fault of the file's


class DownloadFailed(Exception):
    """A file could not be fetched."""

    def __init__(self, reason: str, details: str, *, retryable: bool = True) -> None:
        super().__init__(details)
        self.reason = reason
        self.details = details
        self.retryable = retryable


class DownloadDamaged(DownloadFailed):
    """What the server has is not what it should be, or the server has it no more."""

    def __init__(self, details: str) -> None:
        super().__init__("DOWNLOAD_DAMAGED", details)


class ServerAway(Exception):
    """No server has answered for as long as one waits."""


@dataclass(frozen=True)
class Wanted:
    """A file by its content."""

    name: str
    """For people, such as "pictures/asset_01"."""
    sha256: str
    """Of its bytes, hexadecimal."""
    size_bytes: int
    """Its size; not one byte more is read."""
    url: str
    """A signed GET."""


class Downloads:
    """The cache and the way into it.

    Args:
        client: Without a base URL or credentials: signed URLs need none.
        folder: The cache's.
        limit_bytes: The size that `prune` cuts it down to.
    """

    def __init__(self, client: httpx.AsyncClient, folder: Path, limit_bytes: int) -> None:
        self._client = client
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._slots = asyncio.Semaphore(PARALLEL)
        # One fetch of the same content at a time; the second one then finds it there. A lock is there for as long as
        # somebody holds it or waits for it.
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def startup(self) -> None:
        """Sweeps what an earlier process left half done. Blocks."""
        shutil.rmtree(self._folder / "incoming", ignore_errors=True)
        (self._folder / "incoming").mkdir(parents=True)

    async def fetch(self, wanted: Wanted, fresh_url: Callable[[], Awaitable[str]]) -> Path:
        """The file's path, fetched where it is not there yet. `fresh_url` is asked when the signed URL is refused.

        Raises:
            DownloadFailed: It is not what it should be, or cannot be kept here.
            ServerAway: Nobody has answered for long.
        """
        async with self._under_way.setdefault(wanted.sha256, asyncio.Lock()), self._slots:
            path = self._folder / wanted.sha256[:2] / wanted.sha256
            if path.exists():
                os.utime(path)  # prune goes by it
                return path
            await self._fetch(wanted, path, fresh_url)
            return path

    async def prune(self, keep_since: float) -> None:
        """Deletes the least recently used files above the limit, but none used after `keep_since` (Unix time)."""
        await asyncio.to_thread(self._prune, keep_since)

    async def _fetch(self, wanted: Wanted, path: Path, fresh_url: Callable[[], Awaitable[str]]) -> None:
        try:
            with _Partial(self._folder / "incoming" / f"{wanted.sha256}.{os.urandom(4).hex()}") as partial:
                await self._fetch_into(partial, wanted, path, fresh_url)
        except OSError as exc:
            reason = "DISK_FULL" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else "DISK_FAULT"
            raise DownloadFailed(reason, f"{wanted.name} cannot be stored on the trainer: {exc.strerror}") from exc

    async def _fetch_into(
        self, partial: _Partial, wanted: Wanted, path: Path, fresh_url: Callable[[], Awaitable[str]]
    ) -> None:
        url, wrong = wanted.url, 0
        backoff, silence = Backoff(first=0.5, most=15.0), _Silence()
        while wrong < TRIES:
            try:
                return await self._fetch_once(partial, wanted, url, path, silence)
            except httpx.HTTPStatusError as exc:
                problem = f"the server answered {exc.response.status_code}"
                if exc.response.status_code == 416:
                    partial.restart()
                if exc.response.status_code < 500 and exc.response.status_code not in (408, 429):
                    wrong += 1
                    if wrong < TRIES:
                        url = await fresh_url()  # most likely it has expired
            except httpx.HTTPError as exc:
                problem = f"{type(exc).__name__}: {exc}"
            except _Mismatch as exc:
                problem = str(exc)
                wrong += 1
                partial.restart()
            log.warning("A download failed", name=wanted.name, wrong=wrong, problem=problem)
            if silence.seconds() > PATIENCE:
                raise ServerAway(f"{wanted.name} could not be fetched for {PATIENCE:.0f} s: {problem}")
            if wrong < TRIES:
                await asyncio.sleep(backoff.next())
        raise DownloadDamaged(f"{wanted.name} could not be fetched: {problem}")

    async def _fetch_once(self, partial: _Partial, wanted: Wanted, url: str, path: Path, silence: _Silence) -> None:
        if partial.size < wanted.size_bytes:  # else an answer broke off after its last byte: nothing is left to ask for
            await self._receive(partial, wanted, url, silence)
        await asyncio.to_thread(partial.sync)
        if partial.size != wanted.size_bytes or partial.sha256() != wanted.sha256:
            raise _Mismatch(f"{partial.size} bytes with SHA-256 {partial.sha256()} came, {wanted.sha256} was wanted")
        path.parent.mkdir(exist_ok=True)
        partial.path.replace(path)

    async def _receive(self, partial: _Partial, wanted: Wanted, url: str, silence: _Silence) -> None:
        # No If-Range: which bytes were wanted the hash says, better than any tag. And nothing packed on the way: then
        # the server would count other bytes than we do.
        headers = {"Accept-Encoding": "identity"}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
        async with self._client.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            if not _goes_on(response, partial.size):
                partial.restart()
            async for chunk in response.aiter_bytes(CHUNK):
                silence.broken()
                if partial.size + len(chunk) > wanted.size_bytes:
                    raise _Mismatch(f"it is larger than the {wanted.size_bytes} bytes that it should have")
                await asyncio.to_thread(partial.add, chunk)

    def _prune(self, keep_since: float) -> None:
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("??/*")]
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for used, size, path in sorted(files):
            if excess <= 0 or used >= min(keep_since, time.time()):
                return
            path.unlink(missing_ok=True)
            excess -= size
            log.info("Pruned the cache", path=path.name, size_bytes=size)


class _Partial:
    """What has come of a file so far. Whatever has no other name at the end is deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Opened here and not in a thread: cancelled meanwhile, nobody would be left to close it.
        self._file = path.open("wb")
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # of a full disk: what is left in the buffer is not wanted any more
            self._file.close()
        self.path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Nothing of it was right, or it comes from the beginning."""
        self._digest, self.size = hashlib.sha256(), 0
        self._file.seek(0)
        self._file.truncate()

    def add(self, chunk: bytes) -> None:
        """The next bytes. Blocks."""
        _store(self._file.write, self._digest.update, chunk)
        self.size += len(chunk)

    def sync(self) -> None:
        """Before it gets its name: after a power cut, too, what has one must be whole. Blocks."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def sha256(self) -> str:
        """Of what has come."""
        return self._digest.hexdigest()


def _goes_on(response: httpx.Response, size: int) -> bool:
    """Whether the answer begins where we are; a server may also send the whole file."""
    begins = response.headers.get("content-range", "").partition("-")[0]
    return size == 0 or (response.status_code == 206 and begins == f"bytes {size}")


class _Silence:
    """How long nothing has come from a server."""

    def __init__(self) -> None:
        self._since = self.now()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def broken(self) -> None:
        """Something has come."""
        self._since = self.now()

    def seconds(self) -> float:
        """Since the last byte, or the beginning."""
        return self.now() - self._since


class _Mismatch(Exception):
    """The bytes are not those that were wanted."""


def _store(write: Callable[[bytes], object], update: Callable[[bytes], object], chunk: bytes) -> None:
    write(chunk)
    update(chunk)

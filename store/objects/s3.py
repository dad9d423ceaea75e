"""Objects in an S3 bucket, by obstore, which reads endpoint, region and credentials from the usual AWS_* variables.

    s3://BUCKET/PREFIX/{key}    whole objects: S3 shows none before its last byte has come

Presigned URLs go straight to S3, which checks expiry and signature itself: every GET, and the PUTs of trainers, which
know their length. S3 knows no most of it: who takes up such an upload looks at its size. Callers put to the gateway,
which sends on in parts what does not fit into one; an upload that breaks off is aborted. What a process leaves that
dies at it, a lifecycle rule of the bucket removes (docs/deploying.md).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
)
from obstore.store import S3Store

from store.errors import ObjectsAway
from store.objects.base import ObjectMissing, ObjectReplaced, Objects, Stat, checked
from store.objects.chunks import Counted, gathered
from store.objects.signing import Signer

SINGLE = 5 * 2**30  # bytes: the most that S3 takes in one PUT, and copies in one call
PART = 8 * 2**20  # bytes of a part
LARGEST = 10_000 * PART  # bytes of an object that is sent in parts, 78 GiB: S3 takes no more of them
AT_ONCE = 4  # parts under way of one object
#: Bytes that one write holds at most: the parts under way; the one that obstore fills; the one that it is given, which
#: is put together of pieces that are there once more; and what has been sent and is not yet let go of. As measured.
MOST_MEMORY = (AT_ONCE + 5) * PART

# A gateway that waits for S3 keeps its caller waiting: better a 503 soon.
RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
PATIENCE = timedelta(seconds=60)  # for one answer
LONG_PATIENCE = timedelta(minutes=10)  # for S3 to copy gigabytes, or to put thousands of parts together

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# obstore has no exception for what a listing is refused for. 408 and 429 pass.
_REFUSED = re.compile(r"status code: (4(?!08|29)\d\d [A-Za-z ]+)")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def location(url: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://BUCKET[/PREFIX].

    Raises:
        ValueError: It is none; the sentence says what was wanted.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ValueError("wanted s3://BUCKET[/PREFIX], with a bucket of 3 to 63 of [a-z0-9.-]")
    if prefix:
        checked(prefix + "/key")
    return parts.netloc, prefix


class S3Objects(Objects):
    """A bucket, or what of it begins with a prefix."""

    #: See Objects. What is smaller than a part is gathered whole, and no part of anything is under way before.
    gathered_bytes = PART

    def __init__(self, bucket: str, prefix: str, signer: Signer, environment: Mapping[str, str] = os.environ) -> None:
        """`environment`: obstore reads the process's own; here it is asked for what follows from it.

        Raises:
            ValueError: obstore cannot make sense of an AWS_* variable.
        """
        self.prefix = prefix
        self._prefix = f"{prefix}/" if prefix else ""
        self._signer = signer
        # In plain text only where the endpoint says so: AWS's own is https.
        endpoint = next((environment[name] for name in _ENDPOINTS if environment.get(name)), "")
        self._url = f"s3://{bucket}/{self._prefix} at {endpoint or 'AWS'}"
        # S3 itself knows no copy that replaces nothing, but this: as the one part of an upload that is completed with
        # If-None-Match. Others have a header for it, which AWS_COPY_IF_NOT_EXISTS says.
        config = {} if environment.get("AWS_COPY_IF_NOT_EXISTS") else {"copy_if_not_exists": "multipart"}

        def opened(patience: timedelta) -> S3Store:
            client = {"timeout": patience, "allow_http": endpoint.startswith("http://")}
            return S3Store(bucket, config=config, client_options=client, retry_config=RETRY)  # type: ignore[arg-type]

        try:
            self._store, self._patient = opened(PATIENCE), opened(LONG_PATIENCE)
        except BaseError as exc:
            raise ValueError(_first_line(exc)) from exc

    async def check(self) -> None:
        """Looks whether the bucket is there and open to us.

        Raises:
            ValueError: It is not, and waiting would not help.
            ObjectsAway: Nobody answers.
        """
        try:
            async for _ in obstore.list(self._store, self._prefix or None, chunk_size=1):
                break
        except (BaseError, FileNotFoundError) as exc:
            if (status := _REFUSED.search(str(exc))) is not None:
                raise ValueError(f"{self._url} answers {status[1]}; wanted a bucket that lets us in") from exc
            raise ObjectsAway(f"{self._url} does not answer: {_first_line(exc)}") from exc

    async def sign_get(self, key: str, expires_seconds: float = 3600) -> str:
        """See Objects. It leads to S3."""
        with self._asked(key):
            return await obstore.sign_async(self._store, "GET", self._at(key), timedelta(seconds=expires_seconds))

    async def sign_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """See Objects. S3's own would want a length, and have no bound on it."""
        return self._signer.put(key, expires_seconds, most_bytes, owner)

    async def sign_direct_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """See Objects. It leads to S3 where one PUT will do, else to the gateway."""
        if most_bytes > SINGLE:
            return await self.sign_put(key, expires_seconds, most_bytes=most_bytes, owner=owner)
        with self._asked(key):
            return await obstore.sign_async(self._store, "PUT", self._at(key), timedelta(seconds=expires_seconds))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """See Objects."""
        facts = await self._head(key)
        if facts is None:
            raise ObjectMissing(f"there is no object {key}")
        size, etag, step = facts["size"], facts["e_tag"], PART
        end = size if end is None else min(end, size)

        async def part(first: int) -> bytes:
            options = {"range": (first, min(first + step, end)), "if_match": etag}
            with self._asked(key):
                got = await obstore.get_async(self._store, self._at(key), options=options)  # type: ignore[arg-type]
                return bytes(await got.bytes_async())

        async with aclosing(_ahead(part, iter(range(start, end, step)))) as parts:
            async for chunk in parts:
                yield chunk

    async def write(self, key: str, chunks: AsyncIterable[bytes], *, max_bytes: int | None = None) -> tuple[int, str]:
        """See Objects."""
        path = self._at(key)
        counted = Counted(chunks, max_bytes)
        pieces = gathered(aiter(counted), PART)
        first = await anext(pieces, b"")
        with self._asked(key):
            if len(first) < PART:
                await obstore.put_async(self._store, path, first, use_multipart=False)
            else:
                rest = _then(first, pieces)
                await obstore.put_async(self._patient, path, rest, chunk_size=PART, max_concurrency=AT_ONCE)
        return counted.sum()

    def write_memory(self, size: int | None) -> int:
        """See Objects."""
        return MOST_MEMORY if size is None else min(2 * size, MOST_MEMORY)

    async def stat(self, key: str) -> int | None:
        """See Objects."""
        facts = await self._head(key)
        return None if facts is None else facts["size"]

    async def move(self, source: str, destination: str) -> None:
        """See Objects. S3 has no move: a copy that replaces nothing, and then a deletion. Who dies between the two is
        followed by a call that finds the copy, and deletes. ObjectReplaced only of more than 5 GiB.
        """
        size = await self.stat(source)
        try:
            if size is None:
                raise ObjectMissing(f"there is no object {source}")
            await self._copy(source, destination, size)
        except ObjectMissing:
            if await self.stat(destination) is None:
                raise
        await self.delete(source)

    async def _copy(self, source: str, destination: str, size: int) -> None:
        if size > SINGLE:
            # S3 copies so much only by parts that obstore does not offer; so it goes through here. Of two gateways at
            # it at the same time the later one wins, unlike below. That harms nothing: such keys either hold a nonce,
            # and then nobody else writes there, or the SHA-256 of what was verified, and then both write the same.
            if await self.stat(destination) is None:
                await self.write(destination, self.read(source))
            return
        with self._asked(source), suppress(AlreadyExistsError):
            if size == 0:  # a part of an upload has at least a byte
                await obstore.put_async(self._store, self._at(destination), b"", mode="create", use_multipart=False)
            else:
                await obstore.copy_async(self._patient, self._at(source), self._at(destination), overwrite=False)

    async def delete(self, key: str) -> None:
        """See Objects."""
        with self._asked(key), suppress(FileNotFoundError):
            await obstore.delete_async(self._store, self._at(key))

    async def delete_if_older(self, key: str, modified_at: float) -> bool:
        """See Objects. S3 deletes by name only, a few milliseconds after we have looked. A PUT that comes just then, to
        a key where nothing has come for a day, is lost: its caller is told at completion that nothing was uploaded.
        """
        facts = await self._head(key)
        if facts is None or facts["last_modified"].timestamp() > modified_at:
            return False
        await self.delete(key)
        return True

    async def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Stat]]:
        """See Objects."""
        # obstore's prefixes end at a slash: ask for the folder, and choose in it.
        folder, _, _ = (self._prefix + prefix).rpartition("/")
        with self._asked(prefix):
            async for batch in obstore.list(self._store, folder or None):
                for facts in batch:
                    key = facts["path"].removeprefix(self._prefix)
                    if key.startswith(prefix):
                        yield key, Stat(facts["size"], facts["last_modified"].timestamp())

    async def _head(self, key: str) -> obstore.ObjectMeta | None:
        with self._asked(key), suppress(FileNotFoundError):
            return await obstore.head_async(self._store, self._at(key))
        return None

    def _at(self, key: str) -> str:
        return self._prefix + checked(key)

    @contextmanager
    def _asked(self, key: str) -> Iterator[None]:
        """What S3 says to this is said in our words."""
        try:
            yield
        except FileNotFoundError as exc:
            raise ObjectMissing(f"there is no object {key}") from exc
        except PreconditionError as exc:
            raise ObjectReplaced(f"another object has taken the place of {key}") from exc
        except BaseError as exc:
            raise ObjectsAway(f"{self._url} does not answer: {_first_line(exc)}") from exc


async def _ahead(part: Callable[[int], Coroutine[Any, Any, bytes]], firsts: Iterator[int]) -> AsyncGenerator[bytes]:
    """The parts in their order, the next ones on their way while one is used: S3 is far away, not slow."""
    under_way: deque[asyncio.Task[bytes]] = deque()
    try:
        while True:
            while len(under_way) < AT_ONCE and (first := next(firsts, None)) is not None:
                under_way.append(asyncio.create_task(part(first)))
            if not under_way:
                return
            chunk = await under_way[0]
            under_way.popleft()
            yield chunk
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _then(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _first_line(exc: Exception) -> str:
    """obstore's messages go on with a dump of its own structures."""
    return str(exc).partition("\n")[0]

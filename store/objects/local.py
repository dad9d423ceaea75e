"""Objects in a folder of this host. The gateway serves the signed URLs (gateway/http/objects), which carry all the
authority that there is: whoever has one may do what it names, until it expires.

    root/objects/{key}       whole objects
    root/temporary/{random}  being written; renamed when they are whole and on the disk, swept away when a process
    starts

Disk and hash work is done in threads: the event loop never waits for either.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from store.objects.base import ObjectMissing, Objects, Stat, TooLarge, checked

CHUNK = (
    1024 * 1024
)  # bytes read at a time: large enough to pay for the hop to a thread, small enough to keep memory flat
ABANDONED = 24 * 3600.0  # seconds after which a temporary file is nobody's: no upload lasts a day


class LocalObjects(Objects):
    """A folder. Written atomically: a temporary name, fsync, rename, fsync of the folder."""

    def __init__(self, root: Path, public_url: str, secret: bytes) -> None:
        """`root`: made where it is missing. `public_url`: the gateway's, without a slash at its end. `secret`: signs
        URLs.
        """
        if not secret:
            raise ValueError("the signing secret is empty; wanted some random bytes")
        self._objects = root / "objects"
        self._temporary = root / "temporary"
        self._public_url = public_url.rstrip("/")
        self._secret = secret
        for folder in (self._objects, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        _sweep(self._temporary)

    async def sign_get(self, key: str, expires_seconds: float = 3600) -> str:
        """{public_url}/v1/objects/{key}?expires={unix seconds}&signature={HMAC-SHA256 of "GET\\nkey\\nexpires"}."""
        return self._sign("GET", key, expires_seconds)

    async def sign_put(self, key: str, expires_seconds: float = 3600) -> str:
        """As sign_get, for PUT."""
        return self._sign("PUT", key, expires_seconds)

    def verify(self, method: str, key: str, expires: str | int, signature: str) -> bool:
        """Whether the URL was signed by us for this method and key, and has not expired. HEAD is as GET."""
        method = "GET" if method == "HEAD" else method
        expires = str(expires)
        if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12 and signature.isascii()):
            return False
        mine = self._signature(method, key, expires)
        return hmac.compare_digest(mine, signature) and int(expires) > time.time()

    def _sign(self, method: str, key: str, expires_seconds: float) -> str:
        expires = str(int(time.time() + expires_seconds))
        signature = self._signature(method, checked(key), expires)
        return f"{self._public_url}/v1/objects/{quote(key)}?expires={expires}&signature={signature}"

    def _signature(self, method: str, key: str, expires: str) -> str:
        message = f"{method}\n{key}\n{expires}".encode(errors="surrogatepass")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See Objects."""
        file = await asyncio.to_thread(self._open, key)
        try:
            await asyncio.to_thread(file.seek, start)
            left = float("inf") if end is None else end - start
            while left > 0:
                chunk = await asyncio.to_thread(file.read, int(min(CHUNK, left)))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk
        finally:
            file.close()  # closing what was only read waits for nothing

    async def write(self, key: str, chunks: AsyncIterable[bytes], *, max_bytes: int | None = None) -> tuple[int, str]:
        """See Objects."""
        destination = self._path(key)
        temporary = self._temporary / uuid.uuid4().hex
        digest = hashlib.sha256()
        size = 0
        file = await asyncio.to_thread(temporary.open, "xb")
        try:
            try:
                async for chunk in _gathered(chunks):
                    size += len(chunk)
                    if max_bytes is not None and size > max_bytes:
                        raise TooLarge(f"the object is larger than {max_bytes} bytes")
                    await asyncio.to_thread(_append, file, digest, chunk)
            finally:
                file.close()
            await asyncio.to_thread(_settle, temporary, destination)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return size, digest.hexdigest()

    async def stat(self, key: str) -> int | None:
        """See Objects."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = self._path(key)
            return (await asyncio.to_thread(path.stat)).st_size if await asyncio.to_thread(path.is_file) else None
        return None

    async def hash(self, key: str) -> tuple[str, int]:
        """See Objects."""
        return await asyncio.to_thread(self._hash, key)

    def _hash(self, key: str) -> tuple[str, int]:
        with self._open(key) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

    async def move(self, source: str, destination: str) -> None:
        """See Objects."""
        await asyncio.to_thread(self._move, self._path(source), self._path(destination), source)

    def _move(self, source: Path, destination: Path, key: str) -> None:
        try:
            os.utime(source)  # who sweeps goes by how long it has lain where it is
            _settle(source, destination, _link)
            source.unlink()
        except FileExistsError:
            source.unlink(missing_ok=True)
        except (FileNotFoundError, NotADirectoryError):
            if not destination.is_file():
                raise ObjectMissing(f"there is no object {key}") from None

    async def delete(self, key: str) -> None:
        """See Objects."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            await asyncio.to_thread(path.unlink)

    async def delete_if_older(self, key: str, modified_at: float) -> bool:
        """See Objects."""
        return await asyncio.to_thread(self._delete_if_older, self._path(key), modified_at)

    def _delete_if_older(self, path: Path, modified_at: float) -> bool:
        # A file system deletes by name only, whatever has that name by then. So the file is given a name of ours first,
        # and looked at once more where nobody else finds it.
        aside = self._temporary / uuid.uuid4().hex
        try:
            if _modified_at(path) > modified_at:
                return False
            path.rename(aside)
        except (FileNotFoundError, NotADirectoryError):
            return False
        is_older = _modified_at(aside) <= modified_at
        if not is_older:
            with contextlib.suppress(FileExistsError):  # a still newer one is there: it wins, as it would have
                os.link(aside, path)
        aside.unlink()
        return is_older

    async def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Stat]]:
        """See Objects. Reads the folders as it goes; what changes meanwhile may or may not be there."""
        found = self._walk(prefix)
        while batch := await asyncio.to_thread(_some, found):
            for each in batch:
                yield each

    def _walk(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        # Only the folder that the prefix ends in is read, not the whole store. Folders of the prefix are parts of a
        # key.
        folder, _, _ = prefix.rpartition("/")
        start = self._path(folder) if folder else self._objects
        for parent, folders, names in os.walk(start):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                key = path.relative_to(self._objects).as_posix()
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    if key.startswith(prefix):
                        facts = path.stat()
                        yield key, Stat(facts.st_size, facts.st_mtime)

    def _open(self, key: str) -> io.BufferedReader:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(f"there is no object {key}") from None

    def _path(self, key: str) -> Path:
        """Below the folder, whatever the key: checked() lets no part begin with a dot, and none be empty."""
        return self._objects / checked(key)


async def _gathered(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about CHUNK: an upload comes in small ones, and each write is a hop to a thread."""
    pieces: list[bytes] = []
    size = 0
    async for piece in chunks:
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


def _append(file: io.BufferedIOBase, digest: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


def _settle(source: Path, destination: Path, name: Callable[[Path, Path], object] = Path.replace) -> None:
    """Gives a whole file its name, durable in this order: its bytes, its name, the names of folders made for it."""
    _fsync(source)
    made = [folder for folder in destination.parents if not folder.exists()]
    destination.parent.mkdir(parents=True, exist_ok=True)
    name(source, destination)
    for folder in (destination.parent, *(folder.parent for folder in made)):
        _fsync(folder)


def _link(source: Path, destination: Path) -> None:
    """A second name, which must not be taken: of all ways to move a file only this one never replaces another."""
    os.link(source, destination)


def _modified_at(path: Path) -> float:
    return path.stat().st_mtime


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what a process left that died while it wrote. Other processes may be writing here now."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _some(found: Iterator[tuple[str, Stat]]) -> list[tuple[str, Stat]]:
    return [*itertools.islice(found, 100)]

"""Objects in a folder of this host. The gateway serves the signed URLs (gateway/http/objects).

    root/objects/{key}       whole objects
    root/temporary/{random}  being written; renamed when they are whole and on the disk, swept away when a process
    starts

Disk and hash work is done in threads: the event loop never waits for either. A disk that fails or is full is a store
that is away: ObjectsAway.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from store.errors import ObjectsAway
from store.objects.base import ObjectMissing, Objects, Stat, checked
from store.objects.chunks import CHUNK, Counted
from store.objects.opening import opened
from store.objects.signing import Signer

P = ParamSpec("P")
T = TypeVar("T")

ABANDONED = 24 * 3600.0  # seconds after which a temporary file is nobody's: no upload lasts a day


class LocalObjects(Objects):
    """A folder. Written atomically: a temporary name, fsync, rename, fsync of the folder."""

    def __init__(self, root: Path, signer: Signer) -> None:
        """`root`: made where it is missing.

        Raises:
            OSError: It cannot be made, or not written to.
            ValueError: Its file system has no hard links.
        """
        self._objects = root / "objects"
        self._temporary = root / "temporary"
        self._signer = signer
        for folder in (self._objects, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self._check_links(root)
        _sweep(self._temporary)

    def _check_links(self, root: Path) -> None:
        """All that is moved is moved by a hard link, which some network file systems and FAT have not: better told now
        than at the first upload's completion.
        """
        written = self._temporary / uuid.uuid4().hex
        link = self._objects / f".{written.name}"  # no key begins with a dot
        written.touch()
        try:
            _link(written, link)
        except OSError as exc:
            wanted = "wanted a folder that lies, with all that is in it, on one file system that has them"
            raise ValueError(f"{root} takes no hard links ({exc.strerror}); {wanted}") from exc
        finally:
            link.unlink(missing_ok=True)
            written.unlink(missing_ok=True)

    async def sign_get(self, key: str, expires_seconds: float = 3600) -> str:
        """See Objects. It leads to the gateway, as all here."""
        return self._signer.get(key, expires_seconds)

    async def sign_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """See Objects."""
        return self._signer.put(key, expires_seconds, most_bytes, owner)

    async def sign_direct_put(self, key: str, expires_seconds: float = 3600, *, most_bytes: int, owner: str) -> str:
        """See Objects. It leads to the gateway too."""
        return await self.sign_put(key, expires_seconds, most_bytes=most_bytes, owner=owner)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """See Objects."""
        async with self.opened(key) as object, aclosing(object.read(start, end)) as chunks:
            async for chunk in chunks:
                yield chunk

    @contextlib.asynccontextmanager
    async def opened(self, key: str) -> AsyncIterator[OpenObject]:
        """The object as it is now, whatever takes its place meanwhile. ObjectMissing."""
        file = await opened(_on_disk(self._open, key))
        try:
            yield OpenObject(file)
        finally:
            file.close()  # closing what was only read waits for nothing

    async def write(self, key: str, chunks: AsyncIterable[bytes], *, max_bytes: int | None = None) -> tuple[int, str]:
        """See Objects."""
        destination = self._path(key)
        temporary = self._temporary / uuid.uuid4().hex
        counted = Counted(chunks, max_bytes)

        def drop(file: IO[bytes]) -> None:
            file.close()
            temporary.unlink(missing_ok=True)

        file = await opened(_on_disk(temporary.open, "xb"), drop)
        try:
            try:
                async for chunk in counted:
                    await _on_disk(file.write, chunk)
                await _on_disk(file.flush)
            finally:
                with contextlib.suppress(OSError):  # only where a write has failed before is anything left to write
                    file.close()
            await _on_disk(_settle, temporary, destination)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return counted.sum()

    def write_memory(self, size: int | None) -> int:
        """See Objects. What is gathered, its pieces once more, and the piece that is being written."""
        return 3 * CHUNK if size is None else min(2 * size, 3 * CHUNK)

    async def stat(self, key: str) -> int | None:
        """See Objects."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = self._path(key)
            return await _on_disk(_size_of, path)
        return None

    async def move(self, source: str, destination: str) -> None:
        """See Objects."""
        await _on_disk(self._move, self._path(source), self._path(destination), source)

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
            await _on_disk(path.unlink)

    async def delete_if_older(self, key: str, modified_at: float) -> bool:
        """See Objects."""
        return await _on_disk(self._delete_if_older, self._path(key), modified_at)

    def _delete_if_older(self, path: Path, modified_at: float) -> bool:
        # A file system deletes by name only, whatever has that name by then. So the file is given a name of ours first,
        # and looked at once more where nobody else finds it. Who asks for a newer one in between, or is killed
        # there, has lost it: as with S3, and with the same answer.
        aside = self._temporary / uuid.uuid4().hex
        try:
            if _modified_at(path) > modified_at:
                return False
            path.rename(aside)
        except (FileNotFoundError, NotADirectoryError):
            return False
        is_older = False
        try:
            is_older = _modified_at(aside) <= modified_at
        except FileNotFoundError:  # a process that starts sweeps here too, what is older than a day
            return True
        finally:
            if not is_older:  # also where the disk fails to say so
                with contextlib.suppress(FileNotFoundError, FileExistsError):  # a still newer one is there: it wins
                    os.link(aside, path)
            aside.unlink(missing_ok=True)
        return is_older

    async def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Stat]]:
        """See Objects. Reads the folders as it goes; what changes meanwhile may or may not be there."""
        found = self._walk(prefix)
        while batch := await _on_disk(_some, found):
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


class OpenObject:
    """An object that is being read. Its file is never changed, only replaced as a whole."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        facts = os.fstat(file.fileno())
        self.size_bytes = facts.st_size
        #: A strong validator: no two files of one key have all three in common, for what replaces a file was written
        #: while the old one was there (another inode) or after it (a later time).
        self.etag = f'"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"'

    async def read(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from start to before end."""
        await _on_disk(self._file.seek, start)
        left = float("inf") if end is None else end - start
        while left > 0 and (chunk := await _on_disk(self._file.read, int(min(CHUNK, left)))):
            left -= len(chunk)
            yield chunk


async def _on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does it in a thread. That nothing is there, or something already, is an answer; any other fault of the disk's is
    ObjectsAway.
    """
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError):
        raise
    except OSError as exc:
        raise ObjectsAway(f"the folder of objects fails: {exc}") from exc


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


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

"""A folder of objects: what only a file system does."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from store.errors import ObjectsAway
from store.objects import local
from store.objects.chunks import CHUNK
from store.objects.local import LocalObjects
from store.objects.signing import Signer

SIGNER = Signer("http://gateway.test", b"secret")


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    """An empty store."""
    return LocalObjects(tmp_path / "root", SIGNER)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    """An upload."""
    for chunk in chunks:
        yield chunk


def files_below(folder: Path) -> list[str]:
    """Names of all files, temporary ones too."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_what_is_moved_is_as_old_as_its_move(objects: LocalObjects, tmp_path: Path) -> None:
    await objects.write("incoming/a", pieces(b"one"))
    os.utime(tmp_path / "root/objects/incoming/a", (0, 0))

    await objects.move("incoming/a", "assets/a")

    assert [stat.modified_at > 0 async for _, stat in objects.list("assets/")] == [True]


async def test_object_that_is_replaced_at_the_moment_of_its_deletion_stays(
    objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await objects.write("a", pieces(b"old"))
    os.utime(tmp_path / "root/objects/a", (1000, 1000))

    def looked_at_and_replaced(path: Path) -> float:
        looked_at.append(path)
        modified_at = path.stat().st_mtime
        if len(looked_at) == 1:
            path.write_bytes(b"newer")
        return modified_at

    looked_at: list[Path] = []
    monkeypatch.setattr(local, "_modified_at", looked_at_and_replaced)

    assert await objects.delete_if_older("a", 1000.0) is False
    assert await objects.stat("a") == 5
    assert files_below(tmp_path) == ["a"]


async def test_object_that_another_process_sweeps_at_the_moment_of_its_deletion_is_deleted(
    objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that starts, and takes what is put aside for what was left here long ago."""
    await objects.write("a", pieces(b"old"))
    os.utime(tmp_path / "root/objects/a", (1000, 1000))
    rename = Path.rename

    def renamed_and_swept(path: Path, aside: Path) -> None:
        rename(path, aside)
        LocalObjects(tmp_path / "root", SIGNER)

    monkeypatch.setattr(Path, "rename", renamed_and_swept)

    assert await objects.delete_if_older("a", 1000.0) is True
    assert files_below(tmp_path) == []


async def test_object_whose_age_cannot_be_read_any_more_is_put_back(
    objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await objects.write("a", pieces(b"old"))
    modified_at = local._modified_at

    def failing_at_last(path: Path) -> float:
        if path.parent.name == "temporary":
            raise OSError(errno.EIO, "Input/output error")
        return modified_at(path)

    monkeypatch.setattr(local, "_modified_at", failing_at_last)

    with pytest.raises(ObjectsAway):
        await objects.delete_if_older("a", time.time() + 1)
    assert files_below(tmp_path) == ["a"]


def test_a_folder_without_hard_links_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT, where nothing could be moved: only there would it have been noticed."""

    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)

    with pytest.raises(
        ValueError, match=rf"{tmp_path} takes no hard links \(Operation not permitted\); wanted a folder"
    ):
        LocalObjects(tmp_path, SIGNER)
    assert files_below(tmp_path) == []


def test_a_folder_is_left_as_it_was_found(tmp_path: Path) -> None:
    LocalObjects(tmp_path, SIGNER)

    assert files_below(tmp_path) == []


async def test_a_disk_that_fails_is_a_store_that_is_away(objects: LocalObjects, tmp_path: Path) -> None:
    """As a full one, or one that is no longer mounted: nothing is told of the object."""
    await objects.write("a", pieces(b"one"))
    (tmp_path / "root/objects/a").unlink()
    (tmp_path / "root/objects/a").symlink_to("a")  # ELOOP, whoever asks

    with pytest.raises(ObjectsAway):
        await objects.hash("a")
    with pytest.raises(ObjectsAway):
        await objects.move("a", "b")


async def test_a_hash_leaves_threads_for_others(objects: LocalObjects) -> None:
    """The threads are few; a checkpoint's hash would hold one for a minute."""
    await objects.write("a", pieces(bytes(8 * CHUNK)))
    with ThreadPoolExecutor(1) as only_thread:
        asyncio.get_running_loop().set_default_executor(only_thread)

        hashing = asyncio.create_task(objects.hash("a"))
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)
        was_done = hashing.done()
        await hashing

    assert not was_done


class Slow:
    """A disk that takes its time to open a file, and tells when the file is closed again."""

    def __init__(self) -> None:
        self.asked, self.opens, self.closed = threading.Event(), threading.Event(), asyncio.Event()

    def opening(self, open: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any) -> Any:
            self.asked.set()
            self.opens.wait()
            return self._telling(open(*args))

        return slowly

    def _telling(self, file: io.BufferedIOBase) -> io.BufferedIOBase:
        close = file.close
        mock: Any = file

        def closing() -> None:
            close()
            self.closed.set()

        mock.close = closing
        return file


@pytest.mark.parametrize("doing", ["read", "write"])
async def test_a_file_that_opens_when_nobody_waits_for_it_any_more_is_closed(
    doing: str, objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await objects.write("a", pieces(b"one"))
    slow = Slow()
    if doing == "read":
        monkeypatch.setattr(objects, "_open", slow.opening(objects._open))
        task: asyncio.Task[Any] = asyncio.create_task(anext(objects.read("a")))
    else:
        monkeypatch.setattr(Path, "open", slow.opening(Path.open))
        task = asyncio.create_task(objects.write("b", pieces(b"two")))
    await asyncio.to_thread(slow.asked.wait)

    task.cancel()
    await asyncio.wait({task})
    slow.opens.set()
    async with asyncio.timeout(20):
        await slow.closed.wait()

    assert task.cancelled()
    assert files_below(tmp_path) == ["a"]

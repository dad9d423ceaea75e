"""A folder of objects: whole or not at all, signed, and never outside its folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.objects import local
from store.objects.base import ObjectMissing, TooLarge
from store.objects.chunks import CHUNK
from store.objects.local import LocalObjects
from store.objects.signing import Signer


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    """An empty store."""
    return LocalObjects(tmp_path / "root", Signer("http://gateway.test", b"secret"))


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    """An upload."""
    for chunk in chunks:
        yield chunk


def files_below(folder: Path) -> list[str]:
    """Names of all files, temporary ones too."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_what_is_written_is_read(objects: LocalObjects) -> None:
    content = b"x" * CHUNK + b"abc" * CHUNK + b"end"

    written = await objects.write("assets/a/b", pieces(content[:5], content[5:CHUNK], b"", content[CHUNK:]))

    digest = hashlib.sha256(content).hexdigest()
    assert written == (len(content), digest)
    assert b"".join([chunk async for chunk in objects.read("assets/a/b")]) == content
    assert b"".join([chunk async for chunk in objects.read("assets/a/b", len(content) - 4, len(content) - 1)]) == b"cen"
    assert await objects.stat("assets/a/b") == len(content)
    assert await objects.hash("assets/a/b") == (digest, len(content))


async def test_an_upload_that_breaks_off_leaves_nothing(objects: LocalObjects, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 2 * CHUNK
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await objects.write("a", broken())

    assert await objects.stat("a") is None
    assert files_below(tmp_path) == []


async def test_an_object_larger_than_allowed_is_refused(objects: LocalObjects, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await objects.write("a", pieces(b"x" * 11), max_bytes=10)

    assert await objects.write("a", pieces(b"x" * 10), max_bytes=10) == (10, hashlib.sha256(b"x" * 10).hexdigest())
    assert files_below(tmp_path) == ["a"]


async def test_what_is_moved_is_as_old_as_its_move(objects: LocalObjects, tmp_path: Path) -> None:
    await objects.write("incoming/a", pieces(b"one"))
    os.utime(tmp_path / "root/objects/incoming/a", (0, 0))

    await objects.move("incoming/a", "assets/a")

    assert [stat.modified_at > 0 async for _, stat in objects.list("assets/")] == [True]


async def test_only_what_is_still_as_old_is_deleted(objects: LocalObjects, tmp_path: Path) -> None:
    await objects.write("a", pieces(b"one"))
    os.utime(tmp_path / "root/objects/a", (1000, 1000))

    kept = await objects.delete_if_older("a", 999.0), await objects.stat("a")
    gone = await objects.delete_if_older("a", 1000.0), await objects.stat("a")

    assert (kept, gone) == ((False, 3), (True, None))
    assert await objects.delete_if_older("a", 1000.0) is False, "there is nothing any more"
    assert await objects.delete_if_older("none/at/all", 1000.0) is False
    assert files_below(tmp_path) == []


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


async def test_a_second_write_replaces_the_first(objects: LocalObjects) -> None:
    await objects.write("a", pieces(b"one"))
    await objects.write("a", pieces(b"two"))

    assert b"".join([chunk async for chunk in objects.read("a")]) == b"two"


async def test_what_was_moved_is_not_replaced_by_what_comes_later(objects: LocalObjects) -> None:
    await objects.write("incoming/a", pieces(b"first"))
    await objects.move("incoming/a", "assets/b")
    await objects.write("incoming/a", pieces(b"second"))

    await objects.move("incoming/a", "assets/b")

    assert [chunk async for chunk in objects.read("assets/b")] == [b"first"]
    assert await objects.stat("incoming/a") is None


async def test_a_move_may_be_repeated(objects: LocalObjects) -> None:
    await objects.write("incoming/a", pieces(b"one"))

    await objects.move("incoming/a", "assets/b/c")
    await objects.move("incoming/a", "assets/b/c")

    assert await objects.stat("incoming/a") is None
    assert await objects.stat("assets/b/c") == 3
    with pytest.raises(ObjectMissing):
        await objects.move("incoming/none", "assets/d")


async def test_what_is_not_there_is_missing(objects: LocalObjects) -> None:
    assert await objects.stat("a") is None
    await objects.delete("a")
    with pytest.raises(ObjectMissing):
        await objects.hash("a")
    with pytest.raises(ObjectMissing):
        _ = [chunk async for chunk in objects.read("a")]
    await objects.write("a", pieces(b"x"))
    assert await objects.stat("a/b") is None
    with pytest.raises(ObjectMissing):
        await objects.hash("a/b")


async def test_objects_are_listed_by_the_beginning_of_their_key(objects: LocalObjects) -> None:
    for key in ("incoming/a/1", "incoming/a/2", "incoming/ab", "assets/x"):
        await objects.write(key, pieces(b"x"))

    async def keys(prefix: str) -> list[str]:
        return sorted([key async for key, _ in objects.list(prefix)])

    assert await keys("") == ["assets/x", "incoming/a/1", "incoming/a/2", "incoming/ab"]
    assert await keys("incoming/a") == ["incoming/a/1", "incoming/a/2", "incoming/ab"]
    assert await keys("incoming/a/") == ["incoming/a/1", "incoming/a/2"]
    assert await keys("none/") == []
    [(_, stat)] = [found async for found in objects.list("assets/")]
    assert stat.size_bytes == 1


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", ".hidden", "a/.b", "a\0b", "a\nb", "é", "a\\b"],
)
async def test_no_key_leads_out_of_the_folder(objects: LocalObjects, key: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        await objects.sign_get(key)
    with pytest.raises(ValueError, match="object key"):
        await objects.write(key, pieces(b"x"))
    with pytest.raises(ValueError, match="object key"):
        await objects.stat(key)
    with pytest.raises(ValueError, match="object key"):
        await objects.delete(key)

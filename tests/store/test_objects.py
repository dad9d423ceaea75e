"""The seam's promises, held by both stores: whole or not at all, moved once, deleted only while it is as old."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from store.objects import Objects
from store.objects.base import ObjectMissing, TooLarge
from store.objects.local import LocalObjects
from store.objects.s3 import PART, S3Objects
from store.objects.signing import Signer
from tests.servers.moto import Moto

SIGNER = Signer("http://gateway.test", b"secret")


@dataclass
class Store:
    """A store under test, and a look behind it."""

    objects: Objects
    pieces_left: Callable[[], int]
    """How many unfinished objects lie about."""

    async def keys(self, prefix: str = "") -> list[str]:
        return sorted([key async for key, _ in self.objects.list(prefix)])

    async def modified_at(self, key: str) -> float:
        [found] = [stat.modified_at async for there, stat in self.objects.list(key) if there == key]
        return found


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "folder":
        yield Store(LocalObjects(tmp_path, SIGNER), lambda: len([*(tmp_path / "temporary").iterdir()]))
        return
    moto: Moto = request.getfixturevalue("moto")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment_of().items():
            patch.setenv(name, value)
        yield Store(S3Objects(moto.bucket, uuid4().hex, SIGNER), moto.uploads_under_way)


@pytest.fixture
def objects(store: Store) -> Objects:
    return store.objects


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    """An upload."""
    for chunk in chunks:
        yield chunk


async def content_of(objects: Objects, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in objects.read(key, start, end)])


# Sizes: nothing, one piece, and what S3 takes in several parts.
@pytest.mark.parametrize("size", [0, 1, 2 * PART + 12_345])
async def test_what_is_written_is_read(objects: Objects, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    written = await objects.write("assets/a/b", pieces(content[:5], content[5:PART], b"", content[PART:]))

    digest = hashlib.sha256(content).hexdigest()
    assert written == (size, digest)
    assert await content_of(objects, "assets/a/b") == content
    assert await objects.stat("assets/a/b") == size
    assert await objects.hash("assets/a/b") == (digest, size)


async def test_a_part_of_an_object_is_read(objects: Objects) -> None:
    content = bytes(range(256)) * (PART // 128)
    await objects.write("a", pieces(content))

    parts = [
        (10, 20),
        (PART - 1, PART + 1),
        (1, None),
        (len(content) - 3, len(content) + 5),
        (7, 7),
        (len(content), None),
    ]

    for start, end in parts:
        assert await content_of(objects, "a", start, end) == content[start:end], (start, end)


@pytest.mark.parametrize("size", [1000, 3 * PART])
async def test_an_upload_that_breaks_off_leaves_nothing(store: Store, size: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * size
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await store.objects.write("a", broken())

    assert await store.objects.stat("a") is None
    assert (await store.keys(), store.pieces_left()) == ([], 0)


@pytest.mark.parametrize("most", [10, 2 * PART])
async def test_an_object_larger_than_allowed_is_refused(store: Store, most: int) -> None:
    with pytest.raises(TooLarge):
        await store.objects.write("a", pieces(b"x" * most, b"x"), max_bytes=most)
    refused = await store.keys(), store.pieces_left()
    written = await store.objects.write("a", pieces(b"x" * most), max_bytes=most)

    assert refused == ([], 0)
    assert written == (most, hashlib.sha256(b"x" * most).hexdigest())


async def test_a_second_write_replaces_the_first(objects: Objects) -> None:
    await objects.write("a", pieces(b"one"))
    await objects.write("a", pieces(b"two"))

    assert await content_of(objects, "a") == b"two"


@pytest.mark.parametrize("first", [b"first", b""])
async def test_what_was_moved_is_not_replaced_by_what_comes_later(objects: Objects, first: bytes) -> None:
    await objects.write("incoming/a", pieces(first))
    await objects.move("incoming/a", "assets/b")
    await objects.write("incoming/a", pieces(b"second"))

    await objects.move("incoming/a", "assets/b")

    assert await content_of(objects, "assets/b") == first
    assert await objects.stat("incoming/a") is None


async def test_a_move_may_be_repeated(objects: Objects) -> None:
    await objects.write("incoming/a", pieces(b"one"))

    await objects.move("incoming/a", "assets/b/c")
    await objects.move("incoming/a", "assets/b/c")

    assert await objects.stat("incoming/a") is None
    assert await objects.stat("assets/b/c") == 3
    with pytest.raises(ObjectMissing):
        await objects.move("incoming/none", "assets/d")


async def test_of_two_moves_at_the_same_time_one_wins_and_both_return(store: Store) -> None:
    for name in ("one", "two"):
        await store.objects.write(f"incoming/{name}", pieces(name.encode()))

    moves = (store.objects.move(f"incoming/{name}", "assets/a") for name in ("one", "two"))
    await asyncio.gather(*moves)

    assert await content_of(store.objects, "assets/a") in (b"one", b"two")
    assert await store.keys() == ["assets/a"]


async def test_only_what_is_still_as_old_is_deleted(store: Store) -> None:
    objects = store.objects
    await objects.write("a", pieces(b"one"))
    written_at = await store.modified_at("a")

    kept = await objects.delete_if_older("a", written_at - 1), await objects.stat("a")
    gone = await objects.delete_if_older("a", written_at), await objects.stat("a")

    assert (kept, gone) == ((False, 3), (True, None))
    assert await objects.delete_if_older("a", written_at) is False, "there is nothing any more"
    assert await objects.delete_if_older("none/at/all", written_at) is False
    assert (await store.keys(), store.pieces_left()) == ([], 0)


async def test_what_is_not_there_is_missing(objects: Objects) -> None:
    assert await objects.stat("a") is None
    await objects.delete("a")
    with pytest.raises(ObjectMissing):
        await objects.hash("a")
    with pytest.raises(ObjectMissing):
        await content_of(objects, "a")
    await objects.write("a", pieces(b"x"))
    assert await objects.stat("a/b") is None
    with pytest.raises(ObjectMissing):
        await objects.hash("a/b")


async def test_objects_are_listed_by_the_beginning_of_their_key(store: Store) -> None:
    before = time.time()
    for key in ("incoming/a/1", "incoming/a/2", "incoming/ab", "assets/x"):
        await store.objects.write(key, pieces(b"x"))

    assert await store.keys("") == ["assets/x", "incoming/a/1", "incoming/a/2", "incoming/ab"]
    assert await store.keys("incoming/a") == ["incoming/a/1", "incoming/a/2", "incoming/ab"]
    assert await store.keys("incoming/a/") == ["incoming/a/1", "incoming/a/2"]
    assert await store.keys("none/") == []
    [(_, stat)] = [found async for found in store.objects.list("assets/")]
    assert stat.size_bytes == 1
    assert before - 1 <= stat.modified_at <= time.time() + 1  # S3 knows whole seconds


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", ".hidden", "a/.b", "a\0b", "a\nb", "é", "a\\b"],
)
async def test_no_key_leads_out_of_the_store(objects: Objects, key: str) -> None:
    for asked in (
        lambda: objects.sign_get(key),
        lambda: objects.sign_put(key, most_bytes=1, owner="acme"),
        lambda: objects.sign_direct_put(key, most_bytes=1, owner="acme"),
        lambda: objects.write(key, pieces(b"x")),
        lambda: objects.stat(key),
        lambda: objects.move("a", key),
        lambda: objects.delete(key),
    ):
        with pytest.raises(ValueError, match="object key"):
            await asked()

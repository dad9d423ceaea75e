"""Signed URLs that lead to the gateway, over real connections where streaming or framing matters."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
import structlog

from gateway.http.room import Room
from store.objects import Objects
from store.objects.local import LocalObjects, OpenObject
from store.objects.s3 import MOST_MEMORY, PART, S3Objects
from store.objects.signing import Signer
from tests.servers.front import Front, front
from tests.servers.moto import Moto
from tests.servers.uvicorn import served

KEY = "incoming/assets/asset_1"
MOST = 30 * 2**20  # bytes
PICTURE = b"\x89PNG" + bytes(range(256)) * 20


@pytest.fixture
def signer() -> Signer:
    return Signer("http://gateway", b"secret")


@pytest.fixture
def objects(tmp_path: Path, signer: Signer) -> LocalObjects:
    return LocalObjects(tmp_path, signer)


@pytest.fixture
async def http(objects: LocalObjects, signer: Signer) -> AsyncIterator[httpx.AsyncClient]:
    async with front(objects=(objects, signer)) as door:
        door.http.headers.pop("authorization")
        yield door.http


@asynccontextmanager
async def opened(objects: Objects, signer: Signer) -> AsyncIterator[tuple[Front, str, int]]:
    """The front on a real port: a door, host and port."""
    async with front(objects=(objects, signer)) as door, served(door.app) as (host, port):
        yield door, host, port


@pytest.fixture
def bucket(moto: Moto, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    """An empty store in S3."""
    for name, value in moto.environment_of().items():
        monkeypatch.setenv(name, value)
    return S3Objects(moto.bucket, uuid4().hex, signer)


async def chunks_of(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def stored(objects: LocalObjects, content: bytes = PICTURE) -> str:
    await objects.write(KEY, chunks_of(content))
    return await objects.sign_get(KEY)


@pytest.mark.parametrize("chunked", [True, False])
async def test_what_is_put_is_got(http: httpx.AsyncClient, objects: LocalObjects, chunked: bool) -> None:
    put = await http.put(
        await objects.sign_put(KEY, most_bytes=MOST, owner="acme"), content=chunks_of(PICTURE) if chunked else PICTURE
    )
    got = await http.get(await objects.sign_get(KEY))

    assert (put.status_code, put.json()) == (200, {})
    assert (got.status_code, got.content) == (200, PICTURE)
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-length"] == str(len(PICTURE))
    assert got.headers["x-content-type-options"] == "nosniff"


async def test_an_upload_of_nothing_is_an_empty_object(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    assert (await http.put(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"))).status_code == 200
    got = await http.get(await objects.sign_get(KEY))

    assert (got.status_code, got.content) == (200, b"")


async def test_a_page_uploaded_is_no_page_when_it_is_got(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    got = await http.get(await stored(objects, b"<html><script>alert(1)</script>"))

    assert got.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in got.headers["content-security-policy"]


async def test_head_tells_the_size_with_a_download_url(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    answer = await http.head(await stored(objects))

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(PICTURE))


@pytest.mark.parametrize(
    ("wanted", "status", "first", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=5000-", 206, 5000, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=5120-99999", 206, 5120, None),
        ("bytes=-99999", 200, 0, None),
        ("bytes=0-", 200, 0, None),
        ("bytes=9-5", 200, 0, None),
        ("bytes=0-1,3-4", 200, 0, None),
        ("bytes=-", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=٣-٤", 200, 0, None),
    ],
)
async def test_a_range_is_sent_where_it_is_one(
    http: httpx.AsyncClient, objects: LocalObjects, wanted: str, status: int, first: int, end: int | None
) -> None:
    got = await http.get(await stored(objects), headers=[(b"range", wanted.encode())])

    assert (got.status_code, got.content) == (status, PICTURE[first:end])
    if status == 206:
        start = first % len(PICTURE)
        assert got.headers["content-range"] == f"bytes {start}-{start + len(got.content) - 1}/{len(PICTURE)}"


@pytest.mark.parametrize("wanted", ["bytes=5124-", "bytes=999999999999999999-", "bytes=-0"])
async def test_a_range_past_the_end_is_416(http: httpx.AsyncClient, objects: LocalObjects, wanted: str) -> None:
    got = await http.get(await stored(objects), headers={"range": wanted})

    assert got.status_code == 416
    assert got.headers["content-range"] == "bytes */5124"
    assert got.json()["reason"] == "RANGE_NOT_SATISFIABLE"


async def test_a_download_that_broke_off_goes_on_where_the_object_is_still_the_same(
    http: httpx.AsyncClient, objects: LocalObjects
) -> None:
    url = await stored(objects)
    etag = (await http.get(url)).headers["etag"]
    further = {"range": "bytes=5000-", "if-range": etag}

    same = await http.get(url, headers=further)
    await objects.write(KEY, chunks_of(PICTURE[::-1]))
    other = await http.get(url, headers=further)
    dated = await http.get(url, headers={"range": "bytes=5000-", "if-range": "Thu, 26 Nov 2026 00:00:00 GMT"})

    assert (same.status_code, same.content, same.headers["etag"]) == (206, PICTURE[5000:], etag)
    assert (other.status_code, other.content) == (200, PICTURE[::-1])
    assert other.headers["etag"] != etag
    assert (dated.status_code, dated.content) == (200, PICTURE[::-1])


async def test_a_head_has_no_range(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    answer = await http.head(await stored(objects), headers={"range": "bytes=9999-"})

    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(PICTURE)))


async def test_a_part_of_a_picture_is_of_its_type(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    assert (await http.get(await stored(objects), headers={"range": "bytes=10-"})).headers[
        "content-type"
    ] == "image/png"


async def test_what_is_replaced_while_it_is_sent_is_sent_as_it_was(objects: LocalObjects, signer: Signer) -> None:
    old, new = bytes(16 * 2**20), b"new"
    await objects.write(KEY, chunks_of(old, size=2**20))

    async with (
        front(objects=(objects, signer)) as door,
        served(door.app) as (host, port),
        httpx.AsyncClient() as client,
    ):
        url = (await objects.sign_get(KEY)).replace("http://gateway", f"http://{host}:{port}")
        async with client.stream("GET", url) as answer:
            await objects.write(KEY, chunks_of(new))
            got = await answer.aread()

    assert len(got) == len(old)
    assert not any(got)


async def test_a_url_opens_what_was_signed_and_nothing_else(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    get = await stored(objects)
    put = await objects.sign_put(KEY, most_bytes=MOST, owner="acme")
    attempts = [
        await http.put(get, content=b"x"),
        await http.get(put),
        await http.get(get.replace("asset_1", "asset_2")),
        await http.get(get.replace("asset_1", "..%2Fassets/asset_1")),
        await http.get(get + "0"),
        await http.get(get.replace("signature=", "signature=é")),
        await http.get(get.replace("expires=", "expires=1")),
        await http.get(get.split("?")[0]),
        await http.get(get.replace("expires=", "expires=x")),
        await http.put(put.replace("most=", "most=9"), content=b"x"),
        await http.put(put.replace("&most=", "&least="), content=b"x"),
    ]

    assert {answer.status_code for answer in attempts} == {403}
    assert {answer.json()["reason"] for answer in attempts} == {"BAD_SIGNATURE"}


async def test_an_expired_url_says_so(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    await stored(objects)

    answer = await http.get(await objects.sign_get(KEY, expires_seconds=-10))

    assert (answer.status_code, answer.json()["reason"]) == (403, "URL_EXPIRED")


async def test_an_upload_may_outlive_its_url_once_it_has_begun(
    http: httpx.AsyncClient, objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = SimpleNamespace(time=lambda: time.time() + 7200)

    async def slow() -> AsyncIterator[bytes]:
        yield PICTURE[:10]
        for module in ("gateway.http.objects", "store.objects.signing"):
            monkeypatch.setattr(f"{module}.time", later)
        yield PICTURE[10:]

    put = await objects.sign_put(KEY, 3600, most_bytes=MOST, owner="me")

    begun, repeated = await http.put(put, content=slow()), await http.put(put, content=b"x")

    assert begun.status_code == 200
    assert (await http.get(await objects.sign_get(KEY))).content == PICTURE
    assert (repeated.status_code, repeated.json()["reason"]) == (403, "URL_EXPIRED")


async def test_nothing_uploaded_is_404(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    answer = await http.get(await objects.sign_get(KEY))

    assert (answer.status_code, answer.json()["reason"]) == (404, "OBJECT_MISSING")


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_upload_too_large_is_413_and_leaves_nothing(
    http: httpx.AsyncClient, objects: LocalObjects, chunked: bool, tmp_path: Path
) -> None:
    large = b"x" * 100_001

    answer = await http.put(
        await objects.sign_put(KEY, most_bytes=100_000, owner="acme"), content=chunks_of(large) if chunked else large
    )

    assert (answer.status_code, answer.json()["reason"]) == (413, "TOO_LARGE")
    assert await objects.stat(KEY) is None
    assert not files_in(tmp_path)


@pytest.mark.parametrize("declared", [len(PICTURE) - 1, len(PICTURE) + 1])
async def test_a_body_that_has_not_the_declared_length_is_refused_and_leaves_nothing(
    http: httpx.AsyncClient, objects: LocalObjects, declared: int, tmp_path: Path
) -> None:
    """From a server that leaves the counting to us."""
    put = await objects.sign_put(KEY, most_bytes=MOST, owner="acme")

    answer = await http.put(put, content=chunks_of(PICTURE), headers={"content-length": str(declared)})

    assert (answer.status_code, answer.json()["reason"]) == (400, "LENGTH_MISMATCH")
    assert f"says {declared} bytes" in answer.json()["detail"]
    assert not files_in(tmp_path)


async def test_a_part_of_an_object_is_no_upload(http: httpx.AsyncClient, objects: LocalObjects, tmp_path: Path) -> None:
    put = await objects.sign_put(KEY, most_bytes=MOST, owner="acme")

    answer = await http.put(put, content=b"abc", headers={"content-range": "bytes 0-2/10"})

    assert (answer.status_code, answer.json()["reason"]) == (400, "PARTIAL_UPLOAD")
    assert not files_in(tmp_path)


async def test_bytes_past_the_declared_length_are_no_part_of_the_object(objects: LocalObjects, signer: Signer) -> None:
    """HTTP/1.1 takes them for the next request, which they are not."""
    async with opened(objects, signer) as (_door, host, port):
        url = urlsplit(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"))
        reader, writer = await asyncio.open_connection(host, port)
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        writer.write(f"{head}justmore\r\n\r\n".encode())
        said = await asyncio.wait_for(reader.read(), 20)
        writer.close()

    assert b" 400 " in said
    assert await objects.stat(KEY) in (None, 4)


async def test_a_length_beside_chunks_is_refused(objects: LocalObjects, signer: Signer, tmp_path: Path) -> None:
    async with opened(objects, signer) as (_door, host, port):
        url = urlsplit(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"))
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(f"{head}4\r\nbody\r\n0\r\n\r\n".encode())
        said = await asyncio.wait_for(reader.readline(), 20)
        writer.close()

    assert b" 400 " in said
    assert not files_in(tmp_path)


async def test_a_store_that_is_away_is_503(
    http: httpx.AsyncClient, objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    answer = await http.put(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"), content=PICTURE)

    assert (answer.status_code, answer.json()["reason"]) == (503, "OBJECTS_AWAY")
    assert answer.headers["retry-after"] == "2"
    assert "space" not in answer.text
    assert not files_in(tmp_path)


async def test_a_wrong_verb_is_405(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    answer = await http.delete(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"))

    assert answer.status_code == 405
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD", "PUT"]


async def test_no_signature_is_logged(http: httpx.AsyncClient, objects: LocalObjects) -> None:
    put = await objects.sign_put(KEY, most_bytes=MOST, owner="acme")
    signature = parse_qs(urlsplit(put).query)["signature"][0]

    with structlog.testing.capture_logs() as logs:
        await http.put(put, content=PICTURE)
        await http.put(put + "0", content=PICTURE)

    assert [entry["status"] for entry in logs] == [200, 403]
    assert signature not in json.dumps(logs)
    assert "expires" not in json.dumps(logs)


async def test_an_upload_of_many_megabytes_streams_through(objects: LocalObjects, signer: Signer) -> None:
    content = os.urandom(1024) * 20_000

    async with (
        front(objects=(objects, signer)) as door,
        served(door.app) as (host, port),
        httpx.AsyncClient() as client,
    ):
        base = f"http://{host}:{port}"
        put = await client.put(
            (await objects.sign_put(KEY, most_bytes=MOST, owner="acme")).replace("http://gateway", base),
            content=content,
        )
        got = await client.get((await objects.sign_get(KEY)).replace("http://gateway", base))

    assert put.status_code == 200
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(content).digest()


async def test_an_upload_broken_off_leaves_nothing(objects: LocalObjects, signer: Signer, tmp_path: Path) -> None:
    async with opened(objects, signer) as (door, host, port):
        url = urlsplit(await objects.sign_put(KEY, most_bytes=MOST, owner="acme"))
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await door.answered.wait()

    assert door.requests == [("/v1/objects/{key:path}", "PUT", 499)]
    assert await objects.stat(KEY) is None
    assert not files_in(tmp_path)


async def test_uploads_that_do_not_end_take_no_more_than_their_share_of_memory(
    objects: LocalObjects, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant's third is told to come again, another tenant's is taken, and so is the third when these have ended."""
    begun, write = asyncio.Semaphore(0), objects.write

    async def telling(*args: Any, **kwargs: Any) -> tuple[int, str]:
        begun.release()
        return await write(*args, **kwargs)

    monkeypatch.setattr(objects, "write", telling)
    room = Room(4 * objects.write_memory(None), wait_seconds=0)
    async with front(objects=(objects, signer), room=room) as door, served(door.app) as (host, port):
        slow = []
        for number in range(2):
            url = urlsplit(await objects.sign_put(f"incoming/slow-{number}", most_bytes=MOST, owner="acme"))
            reader, writer = await asyncio.open_connection(host, port)
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: {MOST}\r\n\r\n"
            writer.write(head.encode() + b"begun")
            slow.append((reader, writer))
            await begun.acquire()
        third, fourth = [
            await objects.sign_put(f"incoming/{owner}", most_bytes=MOST, owner=owner) for owner in ("acme", "other")
        ]

        refused = await door.http.put(third, content=chunks_of(PICTURE))
        taken = await door.http.put(fourth, content=chunks_of(PICTURE))
        for reader, writer in slow:
            writer.write(bytes(MOST - len(b"begun")))
            assert b" 200 " in await reader.readline()
            writer.close()
        again = await door.http.put(third, content=chunks_of(PICTURE))

    assert (refused.status_code, refused.json()["reason"]) == (503, "UPLOADS_BUSY")
    assert refused.headers["retry-after"] == "5"
    assert (taken.status_code, again.status_code) == (200, 200)


@pytest.mark.parametrize("size", [5000, PART + 1])
async def test_uploads_to_s3_keep_the_same_rules(bucket: S3Objects, signer: Signer, moto: Moto, size: int) -> None:
    """Of a length that is not said, larger than allowed, and another than was said: in one part, and in several."""
    content = os.urandom(size)
    async with front(objects=(bucket, signer)) as door:
        urls = [await bucket.sign_put(f"incoming/{n}", most_bytes=size, owner="acme") for n in range(3)]

        taken = await door.http.put(urls[0], content=chunks_of(content, 2**20))
        large = await door.http.put(urls[1], content=chunks_of(content + b"x", 2**20))
        short = await door.http.put(
            urls[2], content=chunks_of(content, 2**20), headers={"content-length": str(size - 1)}
        )

    assert (taken.status_code, large.status_code, short.status_code) == (200, 413, 400)
    assert await bucket.hash("incoming/0") == (hashlib.sha256(content).hexdigest(), size)
    assert [key async for key, _ in bucket.list()] == ["incoming/0"]
    assert moto.uploads_under_way() == 0


async def test_pictures_into_s3_whose_length_is_not_said_are_under_way_many_at_once(
    bucket: S3Objects, signer: Signer
) -> None:
    """Each has room for a part, where one of the largest would have all that there is."""
    room = Room(2 * (MOST_MEMORY + 2 * bucket.write_memory(PART)), wait_seconds=0)
    together = asyncio.Barrier(3)

    async def picture() -> AsyncIterator[bytes]:
        yield PICTURE
        await together.wait()

    async with front(objects=(bucket, signer), room=room) as door:

        async def put(key: str) -> int:
            url = await bucket.sign_put(key, most_bytes=64 * 2**20, owner="acme")
            answer = await door.http.put(url, content=picture())
            if answer.status_code != 200:
                await together.abort()
            return answer.status_code

        statuses = await asyncio.gather(*(put(f"incoming/{number}") for number in range(3)), return_exceptions=True)

    assert statuses == [200, 200, 200]


async def test_an_upload_to_s3_takes_more_memory_once_more_than_a_part_has_come(
    bucket: S3Objects, signer: Signer, moto: Moto
) -> None:
    """It is refused there while another of its tenant's holds that."""
    room = Room(2 * MOST_MEMORY, wait_seconds=0)
    url = await bucket.sign_put(KEY, most_bytes=64 * 2**20, owner="acme")
    content = os.urandom(PART + 1)
    async with front(objects=(bucket, signer), room=room) as door:
        async with room.held("acme", bucket.write_memory(PART)):
            small = await door.http.put(url, content=chunks_of(content[: PART - 1], 2**20))
            large = await door.http.put(url, content=chunks_of(content[:PART], 2**20))
        again = await door.http.put(url, content=chunks_of(content, 2**20))

    assert (small.status_code, large.status_code, again.status_code) == (200, 503, 200)
    assert large.json()["reason"] == "UPLOADS_BUSY"
    assert await bucket.hash(KEY) == (hashlib.sha256(content).hexdigest(), PART + 1)
    assert moto.uploads_under_way() == 0


@pytest.mark.parametrize("framing", ["Content-Length: 99999999", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("size", [5000, 2 * PART])
async def test_an_upload_to_s3_that_is_cut_off_is_no_object(
    bucket: S3Objects, signer: Signer, moto: Moto, framing: str, size: int
) -> None:
    async with opened(bucket, signer) as (door, host, port):
        url = urlsplit(await bucket.sign_put(KEY, most_bytes=10**9, owner="acme"))
        _, writer = await asyncio.open_connection(host, port)
        opening = b"" if framing.startswith("Content") else b"%x\r\n" % (3 * PART)
        writer.write(f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode() + opening)
        writer.write(bytes(size))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await door.answered.wait()

    assert door.requests == [("/v1/objects/{key:path}", "PUT", 499)]
    assert await bucket.stat(KEY) is None
    assert moto.uploads_under_way() == 0


async def test_a_download_broken_off_stops_the_reading(
    objects: LocalObjects, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets on the way hold some of it; the rest is not read for nobody."""
    size, read, opened_read = 64 * 2**20, 0, OpenObject.read

    async def counting(*args: Any) -> AsyncIterator[bytes]:
        nonlocal read
        async with aclosing(opened_read(*args)) as chunks:
            async for chunk in chunks:
                read += len(chunk)
                yield chunk

    await objects.write(KEY, chunks_of(bytes(size), size=2**20))
    monkeypatch.setattr(OpenObject, "read", counting)
    async with opened(objects, signer) as (door, host, port):
        url = urlsplit(await objects.sign_get(KEY))
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readexactly(1000)
        writer.transport.abort()
        await door.answered.wait()

    assert door.requests == [("/v1/objects/{key:path}", "GET", 200)]
    assert 0 < read < size // 2

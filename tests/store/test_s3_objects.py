"""Objects in S3, spoken to by moto's server: what only S3 does, or cannot."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx
import pytest

from store.errors import ObjectsAway
from store.objects import s3
from store.objects.base import ObjectReplaced
from store.objects.s3 import PART, SINGLE, S3Objects, location
from store.objects.signing import Signer
from tests.servers.moto import Moto

SIGNER = Signer("http://gateway.test", b"secret")
BODY = bytes(range(256)) * 20


@pytest.fixture
def objects(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    """An empty store."""
    for name, value in moto.environment_of().items():
        monkeypatch.setenv(name, value)
    return S3Objects(moto.bucket, uuid4().hex, SIGNER)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    """An upload."""
    for chunk in chunks:
        yield chunk


async def test_what_a_trainer_puts_to_a_presigned_url_is_got_from_one(objects: S3Objects, moto: Moto) -> None:
    put_url = await objects.sign_direct_put("incoming/a", most_bytes=SINGLE, owner="acme")

    async with httpx.AsyncClient() as client:
        put = await client.put(put_url, content=BODY, headers={"Content-Length": str(len(BODY))})
        stored = await objects.hash("incoming/a")
        got = await client.get(await objects.sign_get("incoming/a"))
        part = await client.get(await objects.sign_get("incoming/a"), headers={"range": "bytes=5000-"})
        missing = await client.get(await objects.sign_get("incoming/none"))

    assert put_url.startswith(f"{moto.url}/{moto.bucket}/")
    assert put.is_success
    assert stored == (hashlib.sha256(BODY).hexdigest(), len(BODY))
    assert (got.status_code, got.content) == (200, BODY)
    assert (part.status_code, part.content) == (206, BODY[5000:])
    assert missing.status_code == 404


@pytest.mark.parametrize("is_direct", [False, True])
async def test_what_s3_would_take_without_a_bound_or_not_at_all_goes_through_the_gateway(
    is_direct: bool, objects: S3Objects
) -> None:
    """All that callers put, and what of trainers' may be larger than one PUT of S3's."""
    sign, most_bytes = (objects.sign_direct_put, SINGLE + 1) if is_direct else (objects.sign_put, 1000)

    url = urlsplit(await sign("incoming/a", 60, most_bytes=most_bytes, owner="acme"))

    query = dict(parse_qsl(url.query))
    assert (url.netloc, url.path) == ("gateway.test", "/v1/objects/incoming/a")
    assert (query["most"], query["owner"]) == (str(most_bytes), "acme")
    assert SIGNER.verify("PUT", "incoming/a", query)


async def test_what_s3_cannot_copy_at_once_is_moved_through_here(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SINGLE", PART)
    large = b"x" * PART + b"end"
    await objects.write("incoming/a", pieces(large))

    await objects.move("incoming/a", "assets/a")
    await objects.write("incoming/a", pieces(large[::-1]))
    await objects.move("incoming/a", "assets/a")

    assert await objects.hash("assets/a") == (hashlib.sha256(large).hexdigest(), len(large))
    assert await objects.stat("incoming/a") is None


async def test_what_is_replaced_while_it_is_moved_through_here_says_so_and_is_moved_whole_afterwards(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, newer = objects.read, b"y" * PART + b"newer"

    async def replaced_amid(key: str) -> AsyncIterator[bytes]:
        async for chunk in read(key):
            yield chunk
            await objects.write(key, pieces(newer))

    await objects.write("incoming/a", pieces(b"x" * 2 * PART))
    monkeypatch.setattr(s3, "SINGLE", PART)
    with monkeypatch.context() as patch:
        patch.setattr(s3, "AT_ONCE", 1)
        patch.setattr(objects, "read", replaced_amid)
        with pytest.raises(ObjectReplaced):
            await objects.move("incoming/a", "assets/a")
    halves = await objects.stat("assets/a")
    await objects.move("incoming/a", "assets/a")

    assert halves is None
    assert await objects.hash("assets/a") == (hashlib.sha256(newer).hexdigest(), len(newer))


async def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await objects.write("a", pieces(b"x" * 2500))
    with monkeypatch.context() as patch:
        patch.setattr(s3, "PART", 1000)
        patch.setattr(s3, "AT_ONCE", 1)
        reading = objects.read("a")
        await anext(reading)

    await objects.write("a", pieces(b"y" * 2500))

    with pytest.raises(ObjectReplaced, match="taken the place"):
        await anext(reading)


async def test_a_prefix_keeps_two_stores_in_one_bucket_apart(objects: S3Objects, moto: Moto) -> None:
    other = S3Objects(moto.bucket, "", SIGNER)
    await objects.write("assets/a", pieces(b"x"))

    inside = [key async for key, _ in objects.list()]
    outside = [key async for key, _ in other.list() if key.endswith("assets/a")]

    assert inside == ["assets/a"]
    assert "assets/a" not in outside
    assert await other.stat("assets/a") is None


@contextmanager
def answering(status: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Objects]:
    """A store whose server answers this to all."""

    class Busy(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_error(status)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815  (http.server's names)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield away_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Objects]:
    """A store whose server answers 503 to all."""
    with answering(503, monkeypatch) as store:
        yield store


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    """A store where nobody listens."""
    return away_at("http://127.0.0.1:9", monkeypatch)


def away_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    for name, value in Moto.environment_at(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(s3.RETRY, "max_retries", 0)
    return S3Objects("bucket", "", SIGNER)


@pytest.mark.parametrize("kind", ["failing", "refusing"])
async def test_a_store_that_does_not_answer_is_away(kind: str, request: pytest.FixtureRequest) -> None:
    objects: S3Objects = request.getfixturevalue(kind)

    async def listed() -> None:
        assert not [found async for found in objects.list()]

    for asked in (
        objects.stat("a"),
        objects.hash("a"),
        objects.write("a", pieces(b"x")),
        objects.write("a", pieces(b"x" * 2 * PART)),
        objects.move("a", "b"),
        objects.delete("a"),
        objects.delete_if_older("a", 0.0),
        listed(),
        objects.check(),
    ):
        with pytest.raises(ObjectsAway) as raised:
            await asked
        assert "\n" not in str(raised.value), "no dump of a library's structures in the log"


@pytest.mark.parametrize(("status", "raised"), [(408, ObjectsAway), (429, ObjectsAway), (403, ValueError)])
def test_a_bucket_that_is_only_busy_is_waited_for(
    status: int, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status, monkeypatch) as store, pytest.raises(raised):
        asyncio.run(store.check())


async def test_the_bucket_is_looked_at(objects: S3Objects) -> None:
    await objects.check()

    with pytest.raises(ValueError, match=r"s3://no-such-bucket/ at .* answers 404 Not Found"):
        await S3Objects("no-such-bucket", "", SIGNER).check()


def test_a_variable_that_makes_no_sense_is_said(objects: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_COPY_IF_NOT_EXISTS", "perhaps")

    with pytest.raises(ValueError, match="perhaps"):
        S3Objects("bucket", "", SIGNER)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://my.bucket-1/", ("my.bucket-1", "")),
        ("s3://bucket/a/b/", ("bucket", "a/b")),
    ],
)
def test_a_url_names_bucket_and_prefix(url: str, found: tuple[str, str]) -> None:
    assert location(url) == found


@pytest.mark.parametrize(
    "url",
    [
        *("s3://", "s3:bucket", "s3://Bucket", "s3://b", "s3://-bucket", "s3://user:secret@bucket", "s3://bucket:9000"),
        *("s3://bucket?x=1", "s3://bucket#x", "s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/ü", "gs://bucket"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="want"):
        location(url)

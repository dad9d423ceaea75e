"""Files come whole and right, or not at all."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from store.objects.local import LocalObjects
from store.objects.s3 import S3Objects
from store.objects.signing import Signer
from tests.servers.front import front
from tests.servers.uvicorn import served
from tests.trainer.supervisor.fake_gateway import FakeObjects
from trainer.supervisor.downloads import CHUNK, DownloadFailed, Downloads, Wanted

BODY = bytes(range(256)) * 12_000


@pytest.fixture
def objects() -> Iterator[FakeObjects]:
    objects = FakeObjects()
    yield objects
    objects.close()


@pytest.fixture
async def downloads(tmp_path: Path) -> AsyncIterator[Downloads]:
    async with httpx.AsyncClient() as client:
        downloads = Downloads(client, tmp_path / "cache", limit_bytes=4_000_000)
        downloads.startup()
        yield downloads


def wanted(objects: FakeObjects, body: bytes = BODY, **changes: object) -> Wanted:
    picture = objects.put("/body", body)
    fields = {"name": "it", "sha256": picture.sha256, "size_bytes": picture.size_bytes, "url": picture.url}
    return Wanted(**{**fields, **changes})  # type: ignore[arg-type]  # fields by name


async def no_url() -> str:
    raise AssertionError("no fresh URL is needed")


async def test_a_file_is_fetched_once_however_many_want_it(downloads: Downloads, objects: FakeObjects) -> None:
    it = wanted(objects)

    paths = await asyncio.gather(*(downloads.fetch(it, no_url) for _ in range(5)))

    assert paths[0].read_bytes() == BODY
    assert len(set(paths)) == 1
    assert objects.asked == ["/body"]


async def test_fetches_of_one_file_take_turns_though_one_fails_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)
    asked, go_on = 0, asyncio.Semaphore(0)

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        status = 404 if asked == 1 else 200
        await go_on.acquire()
        return httpx.Response(status, content=BODY)

    it = Wanted("it", hashlib.sha256(BODY).hexdigest(), len(BODY), "http://objects.example/body")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        downloads = Downloads(client, tmp_path / "cache", limit_bytes=4_000_000)
        downloads.startup()
        first, second = (asyncio.create_task(downloads.fetch(it, no_url)) for _ in range(2))
        await turns()

        go_on.release()
        with pytest.raises(DownloadFailed):
            await first
        third = asyncio.create_task(downloads.fetch(it, no_url))
        await turns()
        for _ in range(2):
            go_on.release()
        paths = await asyncio.gather(second, third)

    assert paths[0] == paths[1]
    assert asked == 2  # the second one's; the third has found it there


async def turns() -> None:
    """Lets every task go on as far as it can without the outside."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_file_has_reached_the_disk_before_it_gets_its_name(
    downloads: Downloads, objects: FakeObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []

    def fsync(descriptor: int) -> None:
        named = any((tmp_path / "cache").glob("??/*"))
        synced.append((os.fstat(descriptor).st_size, named))

    monkeypatch.setattr("trainer.supervisor.downloads.os.fsync", fsync)

    await downloads.fetch(wanted(objects), no_url)

    assert synced == [(len(BODY), False)]


async def test_wrong_bytes_leave_nothing_behind(
    downloads: Downloads, objects: FakeObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)

    with pytest.raises(DownloadFailed, match="was wanted"):
        await downloads.fetch(wanted(objects, sha256="0" * 64), no_url)

    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


async def test_more_than_announced_is_not_read(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)

    with pytest.raises(DownloadFailed, match="larger than the 10 bytes"):
        await downloads.fetch(wanted(objects, size_bytes=10), no_url)


async def test_a_server_that_comes_back_is_tried_again(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.away = True

    async def server_comes_back(seconds: float) -> None:
        objects.away = False

    monkeypatch.setattr("trainer.supervisor.downloads.asyncio.sleep", server_comes_back)

    assert (await downloads.fetch(wanted(objects), no_url)).read_bytes() == BODY


class CutOnce(httpx.AsyncHTTPTransport):
    """A network that loses the first connection amid the answer, once it has given so many bytes."""

    def __init__(self, after: int = CHUNK + 1) -> None:
        super().__init__()
        self._after = after
        self.asked: list[str | None] = []
        self.statuses: list[int] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.headers.get("range"))
        response = await super().handle_async_request(request)
        self.statuses.append(response.status_code)
        if len(self.asked) == 1:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _Cut(response.stream, self._after)
        return response


class _Cut(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, after: int) -> None:
        self._stream = stream
        self._after = after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            yield chunk
            if size >= self._after:
                raise httpx.ReadError("the connection is lost")

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.fixture(params=["folder", "s3"])
async def signed_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """A signed URL of BODY, from each object store."""
    if request.param == "s3":
        moto = request.getfixturevalue("moto")
        for name, value in moto.environment_of().items():
            monkeypatch.setenv(name, value)
        bucket = S3Objects(moto.bucket, "downloads", Signer("http://unused", b"secret"))
        await bucket.write("body", body())
        yield await bucket.sign_get("body")
        return
    signer = Signer("http://gateway", b"secret")
    folder = LocalObjects(tmp_path / "objects", signer)
    await folder.write("body", body())
    async with front(objects=(folder, signer)) as door, served(door.app) as (host, port):
        yield (await folder.sign_get("body")).replace("http://gateway", f"http://{host}:{port}")


async def body() -> AsyncIterator[bytes]:
    yield BODY


async def test_a_download_that_broke_off_goes_on_where_it_was(
    signed_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.Backoff.next", lambda _: 0.0)
    network = CutOnce()
    async with httpx.AsyncClient(transport=network) as client:
        downloads = Downloads(client, tmp_path / "cache", limit_bytes=4_000_000)
        downloads.startup()
        it = Wanted("it", hashlib.sha256(BODY).hexdigest(), len(BODY), signed_url)

        path = await downloads.fetch(it, no_url)

    assert path.read_bytes() == BODY
    assert network.statuses == [200, 206]
    assert network.asked[0] is None
    assert network.asked[1] is not None
    assert int(network.asked[1].removeprefix("bytes=").removesuffix("-")) >= CHUNK
    assert not [*(tmp_path / "cache" / "incoming").iterdir()]


async def test_a_download_that_broke_off_after_its_last_byte_is_not_asked_for_again(
    objects: FakeObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.Backoff.next", lambda _: 0.0)
    content = bytes(2 * CHUNK)
    network = CutOnce(after=len(content))
    async with httpx.AsyncClient(transport=network) as client:
        downloads = Downloads(client, tmp_path / "cache", limit_bytes=4_000_000)
        downloads.startup()

        path = await downloads.fetch(wanted(objects, content), no_url)

    assert path.read_bytes() == content
    assert network.statuses == [200]


async def test_a_download_that_was_wrong_begins_anew(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that knows no ranges, too, nothing is added to what is there."""
    it = wanted(objects)
    objects.objects["/body"] = b"y" * len(BODY)

    async def mended(seconds: float) -> None:
        objects.objects["/body"] = BODY

    monkeypatch.setattr("trainer.supervisor.downloads.asyncio.sleep", mended)

    assert (await downloads.fetch(it, no_url)).read_bytes() == BODY


async def test_a_slow_file_is_no_server_that_is_away(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is when something has come last, not when one began."""
    monkeypatch.setattr("trainer.supervisor.downloads.PATIENCE", 5.0)
    times = iter([0.0, 600.0, 604.0])  # the beginning, the first bytes, the loss of the connection
    monkeypatch.setattr("trainer.supervisor.downloads._Silence.now", lambda _: next(times, 604.0))
    it = wanted(objects, sha256="0" * 64)

    with pytest.raises(DownloadFailed, match="was wanted"):  # three times in full, and not given up before
        await downloads.fetch(it, no_url)


async def test_a_refused_url_is_replaced(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = wanted(objects, url=f"{objects.url}/expired")

    async def fresh_url() -> str:
        return f"{objects.url}/body"

    assert (await downloads.fetch(it, fresh_url)).read_bytes() == BODY


async def test_a_full_disk_has_a_reason_of_its_own(
    downloads: Downloads, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full, bad download: Failed, and another trainer may do better."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.supervisor.downloads._store", full)

    with pytest.raises(DownloadFailed) as raised:
        await downloads.fetch(wanted(objects), no_url)

    assert (raised.value.reason, raised.value.retryable) == ("DISK_FULL", True)


async def test_the_cache_is_pruned_of_the_least_recently_used(downloads: Downloads, objects: FakeObjects) -> None:
    bodies = [bytes([number]) * 2_000_000 for number in range(3)]
    paths = [await downloads.fetch(wanted(objects, body), no_url) for body in bodies]
    for age, path in zip((300, 200, 100), paths, strict=True):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))

    await downloads.prune(keep_since=1_000_000)

    assert [path.exists() for path in paths] == [False, True, True]


async def test_what_is_in_use_is_not_pruned(downloads: Downloads, objects: FakeObjects) -> None:
    paths = [await downloads.fetch(wanted(objects, bytes([number]) * 3_000_000), no_url) for number in range(3)]

    await downloads.prune(keep_since=0)

    assert all(path.exists() for path in paths)


def test_the_same_bytes_have_the_same_name(objects: FakeObjects) -> None:
    assert wanted(objects).sha256 == hashlib.sha256(BODY).hexdigest()

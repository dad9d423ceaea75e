"""Assets whose bytes a gateway fetches from a real site on loopback, which the operator allows: by one gateway or two,
on both databases where the rows matter.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from gateway import fetches as module
from gateway import interceptors
from gateway.assets import AssetService
from gateway.fetches import Fetches
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.outbound import Outbound
from gateway.status import received
from gateway.uploads import Uploads
from store import fetches as store_fetches
from store import keys
from tests.servers.site import Site, secure
from tests.servers.uvicorn import served
from tunesmith.v1 import asset_pb2, asset_service_pb2, asset_service_pb2_grpc

MAX_BYTES = 100_000
COMMIT = "c" * 40
READY, REJECTED = asset_pb2.ASSET_STATUS_READY, asset_pb2.ASSET_STATUS_REJECTED
ERROR, WAITING = asset_pb2.ASSET_STATUS_ERROR, asset_pb2.ASSET_STATUS_READY_TO_UPLOAD


class Gateway:
    """A gateway's asset service with what fetches for it."""

    def __init__(self, service: Any, fetches: Fetches, metrics: Metrics, address: str) -> None:
        self.fetches = fetches
        self._metrics = metrics
        self._service = service
        self._address = address
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self.fetches.run())

    async def die(self) -> None:
        """Whatever it is at, it is at it no more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None

    def counted(self, reason: str) -> float | None:
        """How many fetches have ended so."""
        return self._metrics.registry.get_sample_value("tunesmith_fetches_ended_total", {"reason": reason})

    async def caller(self, name: str) -> Caller:
        """A tenant of that name with a key, which asks this gateway."""
        made = await keys.create_tenant(self._service.database, name)
        _, secret = await keys.create_key(self._service.database, made.id, "test")
        return Caller(made.id, self._address, secret)


class Caller:
    """A tenant at one gateway."""

    def __init__(self, tenant_id: str, address: str, secret: str) -> None:
        self.tenant_id = tenant_id
        channel = grpc.aio.insecure_channel(address)
        self._stub = asset_service_pb2_grpc.AssetServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {secret}"),)

    async def create(self, request: asset_service_pb2.CreateAssetRequest) -> asset_service_pb2.CreateAssetResponse:
        return await self._stub.CreateAsset(request, metadata=self._metadata)

    async def get(self, asset_id: str) -> asset_service_pb2.GetAssetResponse:
        return await self._stub.GetAsset(asset_service_pb2.GetAssetRequest(id=asset_id), metadata=self._metadata)

    async def delete(self, asset_id: str) -> None:
        await self._stub.DeleteAsset(asset_service_pb2.DeleteAssetRequest(id=asset_id), metadata=self._metadata)

    async def end(self, asset_id: str) -> asset_pb2.Asset:
        """The asset once it is judged, or in error."""
        while (asset := (await self.get(asset_id)).asset).status == WAITING:  # noqa: ASYNC110  - as callers do
            await asyncio.sleep(0.02)
        return asset

    async def fetched(self, request: asset_service_pb2.CreateAssetRequest) -> asset_pb2.Asset:
        return await self.end((await self.create(request)).asset.id)


#: Where the database makes no difference.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Make = Callable[..., Awaitable[Gateway]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for longer than a test likes to."""
    for name, value in {"POLL": 0.05, "RENEW": 0.05, "SPEAK": 0.05, "BACKOFF": (0.0,)}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
async def make(service: Any) -> AsyncIterator[Make]:
    """Makes gateways on the one database."""
    async with AsyncExitStack() as opened:

        async def made(hub: str | None = None, *, started: bool = True, **client: Any) -> Gateway:
            gateway = await opened.enter_async_context(gateway_on(service, hub, **client))
            if started:
                gateway.start()
            return gateway

        yield made


@asynccontextmanager
async def gateway_on(service: Any, hub: str | None, **client: Any) -> AsyncIterator[Gateway]:
    outbound = Outbound(**{"allow": [ip_network("127.0.0.0/8")], **client})
    limits = {"max_picture_bytes": MAX_BYTES, "max_weights_bytes": MAX_BYTES}
    metrics = Metrics("test")
    uploads = Uploads(service.database, service.objects, service.judges, metrics, **limits)
    known = Hub(outbound, hub) if hub else None
    fetches = Fetches(service.database, service.objects, uploads, outbound, known, metrics, tune_lease=TUNE_LEASE)
    chain = interceptors.chain(
        authenticate=partial(keys.authenticate, service.database),
        authenticate_trainer=partial(keys.authenticate_trainer, service.database),
    )
    server = grpc.aio.server(interceptors=chain, options=[("grpc.so_reuseport", 0)])
    servicer = AssetService(service.database, service.objects, uploads, fetches)
    asset_service_pb2_grpc.add_AssetServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gateway = Gateway(service, fetches, metrics, f"127.0.0.1:{port}")
    try:
        yield gateway
    finally:
        await gateway.die()
        await server.stop(1)
        await outbound.aclose()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    async with served(made) as (host, port):
        made.base = f"http://{host}:{port}"  # type: ignore[attr-defined]  # for this file's tests
        yield made


def weights(size: int = 64) -> bytes:
    header = b'{"a":{"dtype":"F16","shape":[%d],"data_offsets":[0,%d]}}' % (size // 2, size)
    return len(header).to_bytes(8, "little") + header + bytes(size)


def picture(url: str) -> asset_service_pb2.CreateAssetRequest:
    data = asset_pb2.AssetData(file=asset_pb2.FileData())
    return asset_service_pb2.CreateAssetRequest(
        asset_type=asset_pb2.ASSET_TYPE_FILE, name="cat.png", data=data, url=url, transfer_api_type="sts"
    )


def checkpoint(**given: Any) -> asset_service_pb2.CreateAssetRequest:
    data = asset_pb2.AssetData(checkpoint=asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5"))
    return asset_service_pb2.CreateAssetRequest(
        asset_type=asset_pb2.ASSET_TYPE_CHECKPOINT, name="base", data=data, **given
    )


async def stored(service: Any, query: str) -> list[Any]:
    async with service.database.read() as connection:
        return list(await connection.execute(text(query)))


async def test_picture_of_a_url_is_answered_at_once_and_ready_soon(
    make: Make, site: Any, service: Any, ask: Any
) -> None:
    content = ask.png()
    site.answers["/moved"] = 302, {"location": "/cat.png"}, b""
    site.answers["/cat.png"] = 200, {}, content
    site.held["/cat.png"] = asyncio.Event()
    caller = await (await make()).caller("owner")

    created = await caller.create(picture(site.base + "/moved?X-Signature=secret"))
    site.held["/cat.png"].set()
    asset = await caller.end(created.asset.id)

    assert created.asset.status == WAITING
    assert created.asset.url == site.base + "/moved"
    assert created.transfer_api.WhichOneof("transfer_api") == "none"
    assert (asset.status, asset.size_bytes, asset.url) == (READY, len(content), site.base + "/moved")
    assert asset.data.file.file_format == asset_pb2.FILE_EXTENSION_PNG
    key = f"assets/{asset.id}/{hashlib.sha256(content).hexdigest()}"
    assert b"".join([chunk async for chunk in service.objects.read(key)]) == content
    assert (await caller.get(asset.id)).transfer_api.presigned_url.get_url


@on_sqlite
async def test_each_end_of_a_fetch_is_told(make: Make, site: Any, service: Any, ask: Any) -> None:
    site.answers["/text.png"] = 200, {}, b"not a picture"
    site.answers["/large"] = 200, {}, bytes(MAX_BYTES + 1)
    site.answers["/inside"] = 302, {"location": "http://10.0.0.1/?key=secret"}, b""
    site.answers["/zipped"] = 200, {"content-encoding": "gzip"}, b"\x1f\x8b"
    gateway = await make()
    caller = await gateway.caller("owner")

    told = {}
    for path in ("/text.png", "/large", "/inside", "/zipped", "/missing?key=secret"):
        asset = await caller.fetched(picture(site.base + path))
        told[path] = asset.status, dict(asset.status_info)["reason"], asset.status_details

    assert {path: (status, reason) for path, (status, reason, _) in told.items()} == {
        "/text.png": (REJECTED, "NOT_A_PICTURE"),
        "/large": (ERROR, "TOO_LARGE"),
        "/inside": (ERROR, "ADDRESS_NOT_PUBLIC"),
        "/zipped": (ERROR, "ENCODING_NOT_ALLOWED"),
        "/missing?key=secret": (ERROR, "STATUS_NOT_OK"),
    }
    counted = {reason: gateway.counted(reason) for reason in ("FETCHED", "TOO_LARGE", "ADDRESS_NOT_PUBLIC", "OTHER")}
    assert counted == {"FETCHED": 1, "TOO_LARGE": 1, "ADDRESS_NOT_PUBLIC": 1, "OTHER": None}
    assert told["/missing?key=secret"][2] == "127.0.0.1 answered 404"
    assert "secret" not in str(told["/inside"])
    assert await stored(service, "SELECT * FROM fetches") == []
    assert [key async for key, _ in service.objects.list("")] == []


async def test_fetch_is_tried_again_and_at_last_given_up(make: Make, site: Any, ask: Any) -> None:
    site.answers["/busy"] = [(503, {}, b""), (429, {}, b""), (200, {}, ask.png())]
    site.answers["/down"] = 500, {}, b""
    caller = await (await make()).caller("owner")

    good = await caller.fetched(picture(site.base + "/busy"))
    bad = await caller.fetched(picture(site.base + "/down"))

    assert good.status == READY
    assert (bad.status, dict(bad.status_info)["reason"]) == (ERROR, "STATUS_NOT_OK")
    assert bad.status_details == "127.0.0.1 answered 500 (5 tries)"
    assert site.paths().count("/down") == module.TRIES


@on_sqlite
async def test_name_that_does_not_exist_is_given_up_sooner_than_a_resolver_that_fails(make: Make) -> None:
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME if host == "mistyped.example" else socket.EAI_AGAIN, "no address")

    caller = await (await make(resolve=resolve)).caller("owner")

    mistyped = await caller.fetched(picture("https://mistyped.example/cat.png"))
    failing = await caller.fetched(picture("https://shop.example/cat.png"))

    assert [asset.status_details for asset in (mistyped, failing)] == [
        "mistyped.example cannot be reached at a public address (3 tries)",
        "shop.example cannot be reached at a public address (5 tries)",
    ]
    assert asked == ["mistyped.example"] * 3 + ["shop.example"] * 5


async def test_renewal_undoes_no_end_of_a_try(make: Make, site: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW", 0.0)  # it renews without a pause
    site.answers["/busy"] = [(503, {}, b"")] * 3 + [(200, {}, ask.png())]
    caller = await (await make()).caller("owner")

    with capture_logs() as lines:
        async with asyncio.timeout(module.LEASE):  # for which each would wait
            asset = await caller.fetched(picture(site.base + "/busy"))
            while "fetched" not in (told := [line["action"] for line in lines]):  # noqa: ASYNC110  - a log has no event
                await asyncio.sleep(0.01)

    assert asset.status == READY
    assert [action for action in told if action.startswith("fetch")] == ["fetch_put_off"] * 3 + ["fetched"]


@on_sqlite
async def test_weights_of_a_url_are_judged_unless_the_caller_says_otherwise(make: Make, site: Any) -> None:
    site.answers["/good"] = 200, {}, weights()
    site.answers["/pickle"] = 200, {}, b"PK\x03\x04" + bytes(100)
    caller = await (await make()).caller("owner")

    good = await caller.fetched(checkpoint(url=site.base + "/good"))
    pickle = await caller.fetched(checkpoint(url=site.base + "/pickle"))
    unseen = await caller.fetched(checkpoint(url=site.base + "/pickle", skip_validation=True))

    assert (good.status, good.data.checkpoint.data_type) == (READY, asset_pb2.DATA_TYPE_FP16)
    assert (pickle.status, dict(pickle.status_info)["reason"]) == (REJECTED, "PICKLE")
    assert unseen.status == READY


async def test_another_gateway_goes_on_where_one_died(make: Make, site: Any, service: Any, ask: Any) -> None:
    site.answers["/cat.png"] = 200, {}, ask.png()
    site.held["/cat.png"] = asyncio.Event()
    first, second = await make(), await make()
    await second.die()
    caller = await first.caller("owner")

    created = await caller.create(picture(site.base + "/cat.png"))
    await site.was_asked("/cat.png")
    await first.die()
    site.held["/cat.png"].set()
    second.start()
    await service.database.move_clock(module.LEASE + 1)
    asset = await caller.end(created.asset.id)

    assert asset.status == READY
    assert site.paths() == ["/cat.png"] * 2


@on_sqlite
async def test_fetch_that_ends_each_gateway_is_given_up(make: Make, site: Any, service: Any) -> None:
    site.held["/cat.png"] = asyncio.Event()
    gateway = await make()
    caller = await gateway.caller("owner")
    created = await caller.create(picture(site.base + "/cat.png"))

    for times in range(1, module.TRIES + 1):
        await site.was_asked("/cat.png", times)
        await gateway.die()
        await service.database.move_clock(module.LEASE + 1)
        gateway.start()
    asset = await caller.end(created.asset.id)

    assert (asset.status, dict(asset.status_info)["reason"]) == (ERROR, "FETCH_ABANDONED")


async def test_deletion_ends_the_fetch(make: Make, site: Any, service: Any) -> None:
    site.held["/cat.png"] = asyncio.Event()
    caller = await (await make()).caller("owner")
    created = await caller.create(picture(site.base + "/cat.png"))
    await site.was_asked("/cat.png")

    await caller.delete(created.asset.id)

    await site.was_left("/cat.png")
    assert await stored(service, "SELECT * FROM fetches") == []


@on_sqlite
async def test_slow_servers_of_one_tenant_hold_up_no_other(make: Make, site: Any, ask: Any) -> None:
    site.held["/slow"] = asyncio.Event()
    site.answers["/cat.png"] = 200, {}, ask.png()
    gateway = await make()
    slow, quick = await gateway.caller("slow"), await gateway.caller("quick")
    for _ in range(module.AT_ONCE + 1):
        await slow.create(picture(site.base + "/slow"))
    await site.was_asked("/slow", module.A_TENANT)

    asset = await quick.fetched(picture(site.base + "/cat.png"))

    assert asset.status == READY
    assert site.paths().count("/slow") == module.A_TENANT


REPOSITORY = "wanted OWNER/NAME, each 1 to 96 of a-z A-Z 0-9 . _ - and a letter or digit first"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"url": "file:///etc/passwd"}, "url", "its scheme is 'file'; wanted http or https"),
    ({"url": "http://["}, "url", "its host '%5B' has characters that neither a name nor an address has"),
    ({"url": "http:///a.png"}, "url", "its host is missing; wanted https://HOST/PATH"),
    ({"url": ""}, "url", "must be at least 1 characters"),
    ({"hf_repo": ""}, "hf_repo", "must be at least 1 characters"),
    ({"url": "http://[abc]/"}, "url", "it is not a URL; wanted https://HOST/PATH"),
    ({"url": "http://169.254.169.254/latest"}, "url", "its host 169.254.169.254 is not a public address"),
    ({"url": "http://u:p@shop.example/"}, "url", "it holds a user or a password; wanted a URL without"),
    ({"url": "https://shop.example/", "hf_repo": "o/r"}, "hf_repo", "wanted url or hf_repo, and both are given"),
    ({"hf_repo": "https://me:hf_hidden@hub.example/o/r"}, "hf_repo", REPOSITORY),
    ({"hf_repo": "https://hub.example/o/r?token=hidden"}, "hf_repo", REPOSITORY),
    ({"hf_repo": "hf_hidden"}, "hf_repo", REPOSITORY),
    ({"hf_repo": "../../etc"}, "hf_repo", f"'../../etc': {REPOSITORY}"),
    ({"hf_repo": "é/b"}, "hf_repo", f"'é/b': {REPOSITORY}"),
    ({"hf_repo": "a/" + "b" * 97}, "hf_repo", f"'a/{'b' * 97}': {REPOSITORY}"),
    (
        {"url": "https://shop.example/", "hf_token_secret": "hf_x"},
        "hf_token_secret",
        "it opens hf_repo alone, and that is not given",
    ),
    (
        {"hf_repo": "o/r", "hf_token_secret": "hf\r\nX: 1"},
        "hf_token_secret",
        "wanted printable ASCII characters without spaces",
    ),
]


@on_sqlite
async def test_wrong_request_is_told_by_its_field_and_leaves_nothing(make: Make, service: Any, ask: Any) -> None:
    caller = await (await make("https://hub.example", started=False)).caller("owner")

    told = [await ask.refused(caller.create(checkpoint(**changes))) for changes, _, _ in WRONG]

    assert {one.code for one in told} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [one.violations for one in told] == [{field: sentence} for _, field, sentence in WRONG]
    assert await stored(service, "SELECT * FROM fetches") == []


@on_sqlite
async def test_url_that_will_not_do_is_told_beside_all_else(make: Make, ask: Any) -> None:
    caller = await (await make("https://hub.example", started=False)).caller("owner")
    url = "http://169.254.169.254/latest"

    within = await ask.refused(caller.create(checkpoint(url=url, hf_repo="o/r")))
    request = checkpoint(url=url, hf_repo="o/r")
    request.name = "a:b"
    broken = await ask.refused(caller.create(request))

    assert within.violations.keys() == {"url", "hf_repo"}
    assert broken.violations == within.violations | {"name": broken.violations["name"]}


@on_sqlite
async def test_each_fault_of_a_url_is_a_violation_of_its_own(make: Make) -> None:
    caller = await (await make(started=False)).caller("owner")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.create(picture("http://10.0.0.1:22/"))

    told = received(caught.value.code(), None, caught.value.trailing_metadata()).violations
    assert [(one.field, one.reason) for one in told] == [("url", "URL_NOT_ALLOWED"), ("url", "ADDRESS_NOT_PUBLIC")]


@on_sqlite
async def test_repository_gives_no_picture_and_nothing_where_no_hub_is_set(make: Make, ask: Any) -> None:
    caller = await (await make(started=False)).caller("owner")
    asked = picture("https://shop.example/")
    asked.ClearField("url")
    asked.hf_repo = "o/r"

    as_picture = await ask.refused(caller.create(asked))
    without_hub = await ask.refused(caller.create(checkpoint(hf_repo="o/r")))

    assert as_picture.violations == {"hf_repo": "it gives weights, and asset_type is 'file'"}
    assert (without_hub.code, without_hub.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FETCHING_NOT_CONFIGURED")


@on_sqlite
async def test_too_many_fetches_of_a_tenant_are_refused(
    make: Make, site: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENDING", 2)
    gateway = await make(started=False)
    caller, other = await gateway.caller("owner"), await gateway.caller("other")
    for _ in range(2):
        await caller.create(picture(site.base + "/cat.png"))

    told = await ask.refused(caller.create(picture(site.base + "/cat.png")))
    await other.create(picture(site.base + "/cat.png"))

    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


def described(files: dict[str, int], **changes: Any) -> bytes:
    siblings = [{"rfilename": path, "size": size} for path, size in files.items()]
    return json.dumps({"sha": COMMIT, "private": False, "gated": False, "siblings": siblings} | changes).encode()


FOLDER = {"model_index.json": 500, "unet/diffusion_pytorch_model.safetensors": 900, "vae/config.json": 3}


async def test_open_folder_of_a_hub_becomes_a_source_for_trainers(make: Make, site: Any, service: Any) -> None:
    site.answers["/api/models/o/r"] = 200, {}, described(FOLDER)
    caller = await (await make(site.base)).caller("owner")

    asset = await caller.fetched(checkpoint(hf_repo="o/r"))

    assert (asset.status, asset.hf_repo) == (READY, "o/r")
    assert asset.file_structure == asset_pb2.FILE_STRUCTURE_MULTIPLE_FILES
    [(source,)] = await stored(service, f"SELECT source FROM assets WHERE id = '{asset.id}'")
    assert (json.loads(source) if isinstance(source, str) else source) == {"hugging_face": "o/r", "commit": COMMIT}
    assert site.paths() == ["/api/models/o/r"]


@on_sqlite
async def test_only_safetensors_file_of_a_repository_is_fetched_at_its_commit(make: Make, site: Any) -> None:
    site.answers["/api/models/o/r"] = 200, {}, described({"README.md": 5, "a b.safetensors": 100})
    site.answers[f"/o/r/resolve/{COMMIT}/a b.safetensors"] = 302, {"location": "/cdn/bytes?Signature=secret"}, b""
    site.answers["/cdn/bytes"] = 200, {}, weights()
    caller = await (await make(site.base)).caller("owner")

    asset = await caller.fetched(checkpoint(hf_repo="o/r"))

    assert (asset.status, asset.size_bytes) == (READY, len(weights()))


@on_sqlite
async def test_repository_that_will_not_do_is_told(make: Make, site: Any) -> None:
    site.answers["/api/models/o/gated"] = 200, {}, described(FOLDER, gated="manual")
    caller = await (await make(site.base)).caller("owner")

    gated = await caller.fetched(checkpoint(hf_repo="o/gated"))
    missing = await caller.fetched(checkpoint(hf_repo="o/missing"))

    assert [(one.status, dict(one.status_info)["reason"]) for one in (gated, missing)] == [
        (ERROR, "HF_REPO_NOT_OPEN"),
        (ERROR, "HF_REPO_NOT_FOUND"),
    ]
    assert missing.status_details == "the hub shows no repository o/missing to somebody without a token"


@asynccontextmanager
async def private_hub(folder: Path) -> AsyncIterator[tuple[Site, str, dict[str, Any]]]:
    """A hub over TLS whose bytes lie elsewhere: itself, its address, and what a client wants to reach it."""
    hub = Site()

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with secure(hub, folder, "hub.example", "cdn.example") as (port, trusted):
        hub.answers["/api/models/o/r"] = 200, {}, described({"a.safetensors": 100}, private=True)
        location = f"https://cdn.example:{port}/bytes"
        hub.answers[f"/o/r/resolve/{COMMIT}/a.safetensors"] = 302, {"location": location}, b""
        hub.answers["/bytes"] = 200, {}, weights()
        yield hub, f"https://hub.example:{port}", {"resolve": resolve, "tls": trusted}


async def test_token_goes_to_the_hub_alone_and_is_neither_stored_nor_logged(
    make: Make, service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with private_hub(tmp_path) as (hub, address, client):
        hub.held["/bytes"] = asyncio.Event()
        caller = await (await make(address, **client)).caller("owner")
        with capture_logs() as lines:
            created = await caller.create(checkpoint(hf_repo="o/r", hf_token_secret="hf_secret"))
            await hub.was_asked("/bytes")
            rows = [*await stored(service, "SELECT * FROM fetches"), *await stored(service, "SELECT * FROM assets")]
            hub.held["/bytes"].set()
            asset = await caller.end(created.asset.id)

    assert asset.status == READY
    bearers = [headers.get("authorization") for _, _, headers in hub.asked]
    assert bearers == ["Bearer hf_secret", "Bearer hf_secret", None]
    assert len(rows) >= 2
    assert "hf_secret" not in str(rows) + str(lines) + caplog.text + str(created) + str(asset)


async def test_token_ends_with_its_gateway_and_the_asset_says_so(make: Make, service: Any, tmp_path: Path) -> None:
    async with private_hub(tmp_path) as (hub, address, client):
        hub.held["/bytes"] = asyncio.Event()
        first = await make(address, **client)
        caller = await first.caller("owner")
        created = await caller.create(checkpoint(hf_repo="o/r", hf_token_secret="hf_secret"))
        await hub.was_asked("/bytes")
        await first.die()
        await service.database.move_clock(store_fetches.TOKEN_LEASE + 1)
        await is_alive(service)

        await make(address, **client)
        asset = await caller.end(created.asset.id)

    assert (asset.status, dict(asset.status_info)["reason"]) == (ERROR, "TOKEN_LOST")
    assert "create the asset anew" in asset.status_details
    assert len(hub.asked) == 3


async def test_token_of_a_fetch_that_waits_for_a_place_is_lost_to_no_other_gateway(
    make: Make, service: Any, tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    async with private_hub(tmp_path) as (hub, address, client):
        hub.answers |= {"/slow": (200, {}, ask.png()), "/quick": (200, {}, ask.png())}
        hub.held["/slow"] = asyncio.Event()
        first, second = await make(address, **client), await make(address, started=False, **client)
        at_first, at_second = await first.caller("owner"), await second.caller("other")
        slow = await at_first.create(picture(address + "/slow"))
        await hub.was_asked("/slow")
        created = await at_first.create(checkpoint(hf_repo="o/r", hf_token_secret="hf_secret"))
        for _ in range(4):
            await renewed_to_the_end(service)
            await service.database.move_clock(LESS_THAN_A_LEASE)

        await renewed_to_the_end(service)
        await is_alive(service)
        second.start()
        await at_second.fetched(picture(address + "/quick"))  # due later: it would have begun the other one before
        waits = await at_first.get(created.asset.id)
        hub.held["/slow"].set()
        ends = [await at_first.end(created.asset.id), await at_first.end(slow.asset.id)]

    assert waits.asset.status == WAITING
    assert [asset.status for asset in ends] == [READY, READY]


TUNE_LEASE = 45.0  # seconds
LESS_THAN_A_LEASE = module.LEASE - 5  # seconds


async def is_alive(service: Any) -> None:
    """As if gateways had shown all the while that the service lives: without that no token passes for lost."""
    async with service.database.write() as transaction:
        await transaction.execute(
            text("UPDATE liveness SET seen_at = tunesmith_now(), grace_until = tunesmith_later(-1)")
        )


async def renewed_to_the_end(service: Any) -> None:
    """Waits until every lease and every token has been renewed since the clock was moved."""
    late = "due_at < {} AND tries > 0 OR token_until < {}"
    seconds = module.LEASE - 1, store_fetches.TOKEN_LEASE - 1
    query = "SELECT asset_id FROM fetches WHERE " + late.format(*(f"tunesmith_later({each})" for each in seconds))
    while await stored(service, query):  # noqa: ASYNC110  - rows have no event
        await asyncio.sleep(0.01)


@on_sqlite
async def test_token_of_a_deleted_asset_is_dropped(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 0)
    async with private_hub(tmp_path) as (_, address, client):
        gateway = await make(address, **client)
        caller = await gateway.caller("owner")
        asked = checkpoint(hf_repo="o/r", hf_token_secret="hf_secret")
        kept, deleted = await caller.create(asked), await caller.create(asked)
        before = gateway.fetches.tokens

        await caller.delete(deleted.asset.id)
        while gateway.fetches.tokens == before:  # noqa: ASYNC110  - a number has no event
            await asyncio.sleep(0.01)

        assert (before, gateway.fetches.tokens) == (2, 1)
        monkeypatch.setattr(module, "AT_ONCE", 1)
        assert (await caller.end(kept.asset.id)).status == READY


@on_sqlite
async def test_token_is_not_dropped_while_its_order_is_being_stored(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 0)
    kept, order, keep = asyncio.Condition(), store_fetches.order, store_fetches.keep
    looks = 0

    async def counted(*given: Any) -> set[str]:
        nonlocal looks
        found = await keep(*given)
        async with kept:
            looks += 1
            kept.notify_all()
        return found

    async def slow(*given: Any, **named: Any) -> Any:
        async with kept:
            until = looks + 2
            await kept.wait_for(lambda: looks >= until)
        return await order(*given, **named)

    async with private_hub(tmp_path) as (_, address, client):
        gateway = await make(address, **client)
        caller = await gateway.caller("owner")
        asked = checkpoint(hf_repo="o/r", hf_token_secret="hf_secret")
        await caller.create(asked)
        monkeypatch.setattr(store_fetches, "keep", counted)
        monkeypatch.setattr(store_fetches, "order", slow)

        await caller.create(asked)

        assert gateway.fetches.tokens == 2


async def test_lease_that_was_lost_is_no_deletion_and_leaves_the_token(
    make: Make, service: Any, tmp_path: Path
) -> None:
    async with private_hub(tmp_path) as (hub, address, client):
        hub.held["/bytes"] = asyncio.Event()
        caller = await (await make(address, **client)).caller("owner")
        with capture_logs() as lines:
            created = await caller.create(checkpoint(hf_repo="o/r", hf_token_secret="hf_secret"))
            await hub.was_asked("/bytes")
            async with service.database.write() as transaction:
                await transaction.execute(text("UPDATE fetches SET tries = tries + 1"))
            await hub.was_left("/bytes")
            hub.held["/bytes"].set()
            await service.database.move_clock(module.LEASE + 1)
            asset = await caller.end(created.asset.id)

    assert asset.status == READY
    actions = [line["action"] for line in lines]
    assert ("fetch_left" in actions, "fetch_ended" in actions) == (True, False)


@on_sqlite
async def test_gateway_that_cannot_renew_a_fetch_does_not_begin_it_a_second_time(
    make: Make, site: Any, service: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*given: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(store_fetches, "put_off", away)
    site.answers |= {"/slow": (200, {}, ask.png()), "/quick": (200, {}, ask.png())}
    site.held["/slow"] = asyncio.Event()
    caller = await (await make()).caller("owner")
    created = await caller.create(picture(site.base + "/slow"))
    await site.was_asked("/slow")

    await service.database.move_clock(module.LEASE + 1)
    await caller.fetched(picture(site.base + "/quick"))  # due later
    site.held["/slow"].set()
    asset = await caller.end(created.asset.id)

    assert asset.status == READY
    assert site.paths() == ["/slow", "/quick"]


@on_sqlite
async def test_nothing_of_a_signed_url_is_logged(
    make: Make, site: Any, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site.answers["/good"] = 302, {"location": "/there?Signature=secret"}, b""
    site.answers["/there"] = [(503, {}, b""), (200, {}, ask.png())]
    caplog.set_level("DEBUG")
    caller = await (await make()).caller("owner")

    with capture_logs() as lines:
        good = await caller.fetched(picture(site.base + "/good?key=secret"))
        bad = await caller.fetched(picture(site.base + "/bad?key=secret"))

    assert (good.status, bad.status) == (READY, ERROR)
    # The database's own debug lines, which no setting of the gateway's switches on, show what it is given; the site's
    # are not ours.
    quiet = ("uvicorn", "aiosqlite", "sqlalchemy", "psycopg")
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(quiet)]
    assert {line["action"] for line in lines} >= {"fetch_put_off", "fetch_given_up"}
    assert "secret" not in str(ours) + str(lines)

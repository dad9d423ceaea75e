"""What another tenant has, and what nobody has, are answered alike: over gRPC and over HTTP, for every rpc that names a
thing. And what a key's scopes open, rpc by rpc."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from gateway.http import app
from gateway.server import CALLER_SERVICES
from store import keys
from tunesmith.v1 import asset_pb2
from tunesmith.v1 import asset_service_pb2 as assets
from tunesmith.v1 import asset_service_pb2_grpc as assets_grpc
from tunesmith.v1 import tune_service_pb2 as tunes
from tunesmith.v1 import tune_service_pb2_grpc as tunes_grpc

REQUEST_ID = ("x-request-id", "the-same-each-time")
UNKNOWN = {"tune": "tune_01h00000000000000000000000", "asset": "asset_01h00000000000000000000000"}
MALFORMED = ("nothing", "tune_", "x" * 128, "Ω", "a:b:c")


@dataclass
class Theirs:
    """What the other tenant has: ids, and names that it gave."""

    tune: str
    picture: str
    upload: str
    """Still to be put."""
    checkpoint: str


@dataclass
class Caller:
    """One tenant, over both doors."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient

    async def grpc_answer(self, service: str, rpc: str, request: Message) -> tuple[Any, ...]:
        """Code, sentence and metadata, or the answer."""
        stubs: Any = {"TuneService": tunes_grpc.TuneServiceStub, "AssetService": assets_grpc.AssetServiceStub}
        call = getattr(stubs[service](self.channel), rpc)(request, metadata=(REQUEST_ID,))
        try:
            if rpc == "WatchTune":
                return (await call.read(),)
            return (await call,)
        except grpc.aio.AioRpcError as error:
            return (error.code(), error.details(), sorted(error.trailing_metadata() or ()))

    async def http_answer(self, verb: str, path: str, body: Any = None) -> tuple[int, bytes, list[tuple[str, str]]]:
        """Status, body and headers."""
        answer = await self.http.request(verb, path, json=body, headers=[REQUEST_ID])
        # The bodies of two ids may differ in length; how much else, is seen in the bodies.
        headers = [pair for pair in answer.headers.multi_items() if pair[0] != "content-length"]
        return answer.status_code, answer.content, headers


@pytest.fixture
async def stranger(service: Any, ask: Any) -> AsyncIterator[Caller]:
    made = await keys.create_tenant(service.database, "stranger")
    _, secret = await keys.create_key(service.database, made.id, "test")
    async with grpc.aio.insecure_channel(service.address, options=app.CHANNEL_OPTIONS) as channel:
        shim = app.build(channel, CALLER_SERVICES, objects=(service.objects, service.signer))
        transport = httpx.ASGITransport(shim)
        key = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=key) as client:
            yield Caller(ask.keyed(service.address, secret), client)


@pytest.fixture
async def theirs(tenant: Any, ask: Any) -> Theirs:
    made = await tenant.create_tune("their-tune")
    picture = await tenant.upload(ask.png(), name="their-picture")
    upload = (await tenant.assets.CreateAsset(ask.file("their-upload"))).asset
    request = assets.CreateAssetRequest(asset_type=asset_pb2.ASSET_TYPE_CHECKPOINT, name="their-checkpoint")
    request.data.checkpoint.engine = "image/stable-diffusion-v1-5"
    checkpoint = (await tenant.assets.CreateAsset(request)).asset
    return Theirs(made.id, picture.id, upload.id, checkpoint.id)


def without(value: Any, *names: str) -> Any:
    """The answer without the name that was asked for, in texts and in bytes. A text's length stands in front of it."""
    if isinstance(value, tuple | list):
        return [without(each, *names) for each in value]
    for name in names:
        if isinstance(value, bytes):
            value = value.replace(name.encode(), b"NAME")
        elif isinstance(value, str):
            value = value.replace(name, "NAME")
    return value


def _create(ask: Any, **changes: Any) -> tunes.CreateTuneRequest:
    request: tunes.CreateTuneRequest = ask.tune(["asset_01h11111111111111111111111"], **changes)
    return request


#: What names a thing, of the kind "tune", "asset" (by id) or "name" (an asset's, bare or with its owner).
BY_ID: list[tuple[str, str, Callable[[str], Message]]] = [
    ("tune", "TuneService/GetTune", lambda id: tunes.GetTuneRequest(id=id)),
    ("tune", "TuneService/CancelTune", lambda id: tunes.CancelTuneRequest(id=id)),
    ("tune", "TuneService/DeleteTune", lambda id: tunes.DeleteTuneRequest(id=id)),
    ("tune", "TuneService/WatchTune", lambda id: tunes.WatchTuneRequest(id=id)),
    ("tune", "TuneService/ListTuneEvents", lambda id: tunes.ListTuneEventsRequest(id=id)),
    ("asset", "AssetService/GetAsset", lambda id: assets.GetAssetRequest(id=id)),
    ("asset", "AssetService/CompleteUpload", lambda id: assets.CompleteUploadRequest(id=id)),
    ("asset", "AssetService/DeleteAsset", lambda id: assets.DeleteAssetRequest(id=id)),
]
LISTED: list[tuple[str, str, Callable[[str], Message]]] = [
    ("asset", "TuneService/ListTunes", lambda id: tunes.ListTunesRequest(base_checkpoint_id=id)),
    ("asset", "AssetService/ListAssets", lambda id: assets.ListAssetsRequest(asset_ids=id)),
    ("name", "AssetService/ListAssets", lambda name: assets.ListAssetsRequest(name=name)),
    ("owner", "AssetService/ListAssets", lambda owner: assets.ListAssetsRequest(owner=owner)),
]


async def test_anothers_thing_is_answered_like_none_over_grpc(stranger: Caller, theirs: Theirs, ask: Any) -> None:
    named = {
        "tune": [theirs.tune],
        "asset": [theirs.picture, theirs.upload, theirs.checkpoint],
        "name": ["their-picture"],
        "owner": ["acme"],
    }
    nobody = {**UNKNOWN, "name": "nobody-called", "owner": "none"}
    for kind, rpc, request in [*BY_ID, *LISTED]:
        service, _, method = rpc.partition("/")
        unknown = await stranger.grpc_answer(service, method, request(nobody[kind]))
        for name in named[kind]:
            answer = await stranger.grpc_answer(service, method, request(name))
            assert without(answer, name) == without(unknown, nobody[kind]), rpc
        if (kind, rpc, request) in BY_ID:
            assert unknown[0] is grpc.StatusCode.NOT_FOUND
            for name in (*MALFORMED, "their-picture", "acme:their-picture", "acme:nothing!"):
                answer = await stranger.grpc_answer(service, method, request(name))
                told = without(answer[:2], name, repr(name)[1:-1])
                assert told == without(unknown[:2], nobody[kind]), (rpc, name)


async def test_a_tune_that_names_anothers_thing_is_refused_like_one_that_names_none(
    stranger: Caller, theirs: Theirs, ask: Any
) -> None:
    async def refused(request: tunes.CreateTuneRequest, name: str) -> list[Any]:
        answer = await stranger.grpc_answer("TuneService", "CreateTune", request)
        assert answer[0] is grpc.StatusCode.INVALID_ARGUMENT
        return list(without(answer, name))

    for file in (theirs.picture, theirs.upload, theirs.checkpoint):
        told = await refused(ask.tune([file]), file)
        assert told == await refused(ask.tune([UNKNOWN["asset"]]), UNKNOWN["asset"])
    for mine, nobodys in [
        (theirs.checkpoint, UNKNOWN["asset"]),
        (theirs.picture, UNKNOWN["asset"]),
        ("their-checkpoint", "nobody-s-at-all-"),
        ("acme:their-checkpoint", "acme:nobody-s-at-all-"),
        ("acme:their-checkpoint", "none:their-checkpoint"),
    ]:
        told = await refused(_create(ask, checkpoint=mine), mine)
        unknown = await refused(_create(ask, checkpoint=nobodys), nobodys)
        if len(mine) == len(nobodys):
            assert told == unknown, mine
        else:
            assert told[:2] == unknown[:2], mine


ROUTES = [
    ("tune", "GET", "/v1/tune/{}"),
    ("tune", "POST", "/v1/tune/{}/cancel"),
    ("tune", "DELETE", "/v1/tune/{}"),
    ("tune", "GET", "/v1/tune/{}/events"),
    ("tune", "GET", "/v1/tune/{}/events:list"),
    ("asset", "GET", "/v1/assets/{}"),
    ("asset", "POST", "/v1/assets/{}/complete-upload"),
    ("asset", "DELETE", "/v1/assets/{}"),
    ("asset", "GET", "/v1/tunes?base_checkpoint_id={}"),
    ("asset", "GET", "/v1/assets?asset_ids={}"),
    ("asset", "GET", "/v1/assets?asset_ids=nothing,{}"),
]


async def test_anothers_thing_is_answered_like_none_over_http(stranger: Caller, theirs: Theirs) -> None:
    named = {"tune": [theirs.tune], "asset": [theirs.picture, theirs.upload, theirs.checkpoint]}
    for kind, verb, path in ROUTES:
        unknown = await stranger.http_answer(verb, path.format(UNKNOWN[kind]))
        assert unknown[0] == (200 if "?" in path else 404)
        for name in named[kind]:
            answer = await stranger.http_answer(verb, path.format(name))
            assert without(answer, name) == without(unknown, UNKNOWN[kind]), path
    for name in ("their-picture", "acme:their-picture"):
        found = await stranger.http_answer("GET", f"/v1/assets/{name}")
        assert without(found, name) == without(await stranger.http_answer("GET", "/v1/assets/none:x"), "none:x")


async def test_nothing_of_it_changed_what_they_have(stranger: Caller, theirs: Theirs, tenant: Any) -> None:
    for kind, rpc, request in BY_ID:
        service, _, method = rpc.partition("/")
        await stranger.grpc_answer(service, method, request(theirs.tune if kind == "tune" else theirs.upload))

    tune = await tenant.tunes.GetTune(tunes.GetTuneRequest(id=theirs.tune))
    upload = await tenant.assets.GetAsset(assets.GetAssetRequest(id=theirs.upload))

    assert tune.status == 1
    assert upload.asset.status == 1
    assert upload.transfer_api.presigned_url.put_url


#: rpc -> the one scope that opens it.
SCOPES = {
    "TuneService/CreateTune": "tune:write",
    "TuneService/GetTune": "tune:read",
    "TuneService/ListTunes": "tune:read",
    "TuneService/CancelTune": "tune:write",
    "TuneService/DeleteTune": "tune:write",
    "TuneService/WatchTune": "tune:read",
    "TuneService/ListTuneEvents": "tune:read",
    "AssetService/CreateAsset": "asset:write",
    "AssetService/CompleteUpload": "asset:write",
    "AssetService/GetAsset": "asset:read",
    "AssetService/ListAssets": "asset:read",
    "AssetService/DeleteAsset": "asset:write",
}
OPENS = {
    "tune:read": {"tune:read"},
    "tune:write": {"tune:write"},
    "tune:*": {"tune:read", "tune:write"},
    "asset:read": {"asset:read"},
    "asset:write": {"asset:write"},
    "asset:*": {"asset:read", "asset:write"},
    "*": {"tune:read", "tune:write", "asset:read", "asset:write"},
}


def test_every_rpc_of_a_caller_stands_in_the_table() -> None:
    served = {f"{service.name}/{method.name}" for service in CALLER_SERVICES for method in service.methods}

    # Those of services that came later have tests of their own.
    assert {rpc for rpc in served if rpc.partition("/")[0] in ("TuneService", "AssetService")} == set(SCOPES)


@pytest.mark.parametrize("scope", OPENS)
async def test_a_scope_opens_its_rpcs_and_no_other(service: Any, ask: Any, scope: str) -> None:
    made = await keys.create_tenant(service.database, "scoped")
    _, secret = await keys.create_key(service.database, made.id, "test", [scope])
    channel = ask.keyed(service.address, secret)
    stubs: Any = {
        "TuneService": tunes_grpc.TuneServiceStub(channel),
        "AssetService": assets_grpc.AssetServiceStub(channel),
    }
    opened = set()

    for rpc in SCOPES:
        name, _, method = rpc.partition("/")
        module: Any = tunes if name == "TuneService" else assets
        request = getattr(module, f"{method}Request")()
        if "id" in request.DESCRIPTOR.fields_by_name:
            request.id = "nothing"
        call = getattr(stubs[name], method)(request)
        try:
            await (call.read() if method == "WatchTune" else call)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                continue
        opened.add(rpc)

    assert opened == {rpc for rpc, wanted in SCOPES.items() if wanted in OPENS[scope]}

"""A real Envoy transcodes by the same descriptors and rules, to the same gateway: it agrees with the shim on every
route, parameter and body, but for what the contract forces, which docs/api.md lists.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import grpc
import httpx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2

from gateway.http.app import CHANNEL_OPTIONS, build
from gateway.http.bindings import Binding, bindings
from gateway.http.json import from_json, to_json
from gateway.http.profile import enum_names
from tests.servers.canonical import DIFFERENCES, Reading, refusal
from tests.servers.envoy import Envoy
from tests.servers.front import SERVICES
from tests.servers.gateway import Account, Gateway
from tests.servers.recorder import Recorder, filled
from tests.servers.service import tune_request

API = Path(__file__).parents[2] / "docs/api.md"
BINDINGS = bindings(SERVICES)
ARMS = 7  # of the widest union: a tune's event
NDJSON = {"Accept": "application/x-ndjson"}
UNKNOWN = "asset_00000000000000000000000000"


@dataclass
class Exchange:
    """One request through both doors."""

    binding: Binding | None
    shim: httpx.Response
    envoy: httpx.Response
    asked: list[Any] = field(default_factory=list)
    """Rpc and request that arrived: through the shim, through Envoy, and as it was meant. Where a recorder listened."""

    def told(self, without: tuple[str, ...] = ()) -> tuple[Any, Any]:
        """Status and JSON of both, Envoy's read as the shim's but for the differences named."""
        ours: Any = self.shim.status_code, _values(self.shim)
        if self.shim.is_error:
            ours = refusal(*ours)
        reading = Reading(without)
        if self.binding is None:
            theirs = reading.refusal(self.envoy.status_code, _values(self.envoy))
        else:
            output, success = self.binding.method.output_type, self.binding.success_status
            theirs = reading.answer(output, success, self.envoy.status_code, _values(self.envoy))
        return _steady(ours), _steady(theirs)


def _values(response: httpx.Response) -> Any:
    if "ndjson" in response.headers.get("content-type", ""):
        return [json.loads(line) for line in response.text.splitlines() if line]
    return response.json() if "json" in response.headers.get("content-type", "") else None


def _steady(value: Any) -> Any:
    """Without what differs between two requests of the same: new ids, names, times, places, signatures."""
    if isinstance(value, dict):
        volatile = ("id", "name", "token", "created_at", "updated_at", "deleted_at", "queue_position")
        return {key: bool(one) if key in volatile else _steady(one) for key, one in value.items()}
    if isinstance(value, str):
        return re.sub("(asset|tune)_[0-9a-z]{26}", "ID", urlsplit(value).path if value.startswith("http:") else value)
    return [_steady(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder(SERVICES) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def envoy(gateway: Gateway, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    folder = tmp_path_factory.mktemp("envoy")
    files = FileDescriptorSet()
    for descriptor in (error_details_pb2.DESCRIPTOR, *(service.file for service in SERVICES)):
        add(files, descriptor)
    (folder / "descriptors.binpb").write_bytes(files.SerializeToString())
    services = [service.full_name for service in SERVICES]
    upstreams = {"recorder": recorder.address, "gateway": gateway.ready["grpc"]}
    with Envoy(folder, folder / "descriptors.binpb", services, upstreams) as envoy:
        yield envoy


def add(files: FileDescriptorSet, descriptor: Any) -> None:
    """Adds a file after all that it imports."""
    for imported in descriptor.dependencies:
        add(files, imported)
    if descriptor.name not in {file.name for file in files.file}:
        descriptor.CopyToProto(files.file.add())


# ------------------------------------------------------------------------------------------------------------- requests


@asynccontextmanager
async def doors(recorder: Recorder, envoy: Envoy) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Shim and Envoy in front of the recorder."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(recorder.address, options=CHANNEL_OPTIONS))
        transport = httpx.ASGITransport(build(channel, SERVICES))
        shim = httpx.AsyncClient(transport=transport, base_url="http://shim")
        yield (
            await stack.enter_async_context(shim),
            await stack.enter_async_context(httpx.AsyncClient(base_url=envoy.urls["recorder"])),
        )


async def record(recorder: Recorder, envoy: Envoy) -> dict[str, Exchange]:
    """Every binding with each field of its request and its answer set, with each arm of their unions; and with an
    answer in which nothing is set."""
    found = {}
    async with doors(recorder, envoy) as (shim, other):
        for binding in BINDINGS:
            output = GetMessageClass(binding.method.output_type)
            for arm in range(ARMS + 1):
                meant = filled(binding.method.input_type, arm)
                answer = filled(binding.method.output_type, arm) if arm < ARMS else output()
                recorder.answers = [answer] * 2
                asked: list[Any] = []
                responses: list[httpx.Response] = []
                for door, ours in ((shim, True), (other, False)):
                    recorder.asked = None
                    responses.append(await door.request(**request(binding, meant, ours=ours)))
                    asked.append(recorder.asked)
                name = f"{binding.method.name} {arm if arm < ARMS else 'bare'}"
                found[name] = Exchange(binding, responses[0], responses[1], [*asked, (binding.method.name, meant)])
    return found


def request(binding: Binding, message: Message, *, ours: bool) -> dict[str, Any]:
    """The HTTP request that says the message: in our profile, or in protobuf's own JSON."""
    path = binding.template.text
    for variable in binding.variables:
        path = path.replace(f"{{{variable.name}}}", quote(getattr(message, variable.name), safe=""))
    asked: dict[str, Any] = {"method": binding.verb, "url": path, "headers": NDJSON}
    if binding.body == "*":
        body = to_json(message) if ours else MessageToDict(message, preserving_proto_field_name=True)
        return asked | {"json": {key: value for key, value in body.items() if key not in binding.template.text}}
    return asked | {"params": {p.name: texts(p.field, getattr(message, p.name), ours) for p in binding.query}}


def texts(field: FieldDescriptor, value: Any, ours: bool) -> list[str]:
    """What a query says for a field."""
    values = list(value) if field.is_repeated else [value]
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return [names[one] if ours else field.enum_type.values_by_number[one].name for one in values]
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


# -------------------------------------------------------------------------------------------------------------- gateway


@dataclass(frozen=True)
class Asked:
    """A request to a gateway, as the shim reads it. {tune}, {asset} and so on stand for ids, {door} for its door."""

    verb: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, Any] = field(default_factory=dict)
    key: str = "{key}"
    headers: dict[str, str] = field(default_factory=dict)


def tune(name: str, *files: str, **details: Any) -> dict[str, Any]:
    return tune_request(name, list(files), **{"steps": 10, **details})


PICTURE = {"asset_type": "file", "name": "{door}", "data": {"asset_type": "file", "file_format": "png"}}
ASKED = {
    "all tunes": Asked("GET", "/v1/tunes"),
    "some tunes": Asked("GET", "/v1/tunes", query={"limit": 1, "tune_type": "lora_tune", "trigger_words": ["sks"]}),
    "no tunes": Asked("GET", "/v1/tunes", query={"trigger_words": ["sks", "dog"], "engine": "image/x", "name": "a b"}),
    "unknown parameter": Asked("GET", "/v1/tunes", query={"colour": "red"}),
    "a tune": Asked("GET", "/v1/tune/{tune}"),
    "its events": Asked("GET", "/v1/tune/{tune}/events"),
    "its later events": Asked("GET", "/v1/tune/{tune}/events:list", query={"after_id": 1, "limit": 5}),
    "slashes": Asked("GET", "//v1//tune/{tune}"),
    "a picture": Asked("GET", "/v1/assets/{asset}", query={"transfer_api_type": "sts"}),
    "by name": Asked("GET", "/v1/assets/cat"),
    "by owner and name": Asked("GET", "/v1/assets/{owner}:cat"),
    "by owner and name, escaped": Asked("GET", "/v1/assets/{owner}%3Acat"),
    "the catalogue": Asked("GET", "/v1/assets", query={"is_public": "true", "asset_type": ["checkpoint", "lora"]}),
    "assets": Asked("GET", "/v1/assets", query={"asset_ids": "{asset},{upload}", "get_preview_urls": "true"}),
    "a new picture": Asked("POST", "/v1/assets", PICTURE),
    "a new checkpoint": Asked(
        "POST",
        "/v1/assets",
        {"asset_type": "checkpoint", "name": "{door}", "data": {"asset_type": "checkpoint", "engine": "image/x"}},
    ),
    "a new tune": Asked("POST", "/v1/tune", tune("{door}", "{asset}", resize_images=None)),
    "a tune that is only checked": Asked("POST", "/v1/tune?validate_only=true", tune("taken not", "{asset}")),
    "a cancel without a body": Asked("POST", "/v1/tune/{cancelled by door}/cancel"),
    "a cancel with an empty body": Asked("POST", "/v1/tune/{cancelled by door}/cancel", {}),
    "a deletion": Asked("DELETE", "/v1/tune/{cancelled by door}"),
    "a completion again": Asked("POST", "/v1/assets/{asset}/complete-upload", {}),
    "nothing uploaded": Asked("POST", "/v1/assets/{upload}/complete-upload", {"token": "x"}),
    "broken rules": Asked("POST", "/v1/tune", tune("a/b", steps=0, seed=-1)),
    "an unknown file": Asked("POST", "/v1/tune", tune("unknown", "{asset}", UNKNOWN)),
    "a broken rule of a query": Asked("GET", "/v1/assets", query={"limit": 101, "offset": -1}),
    "a taken name": Asked("POST", "/v1/tune", tune("taken", "{asset}", steps=11)),
    "a deleted tune": Asked("GET", "/v1/tune/{cancelled by door}"),
    "no such asset": Asked("DELETE", "/v1/assets/" + UNKNOWN),
    "a wrong key": Asked("GET", "/v1/tunes", key="ts_wrong"),
    "no route": Asked("GET", "/v2/tunes"),
}


async def talk(account: Account, envoy: Envoy, ids: dict[str, str]) -> dict[str, Exchange]:
    """Every request of ASKED through both doors of one gateway."""
    found = {}
    async with httpx.AsyncClient() as http:
        for name, asked in ASKED.items():
            responses = []
            for door, url in (("shim", account.url), ("envoy", envoy.urls["gateway"])):
                here = {**ids, "door": door, "cancelled by door": ids[f"cancelled by {door}"]}
                binding, sent = put(asked, here, ours=door == "shim")
                responses.append(await http.request(**{**sent, "url": url + sent["url"]}))
            found[name] = Exchange(binding, responses[0], responses[1])
    return found


def put(asked: Asked, ids: dict[str, str], *, ours: bool) -> tuple[Binding | None, dict[str, Any]]:
    """A request of ASKED as one of the doors reads it."""
    path = fill(asked.path, ids)
    tidy = re.sub("/+", "/", path.partition("?")[0])
    binding = next((b for b in BINDINGS if b.verb == asked.verb and b.template.regex.fullmatch(tidy)), None)
    query, body = fill(asked.query, ids), fill(asked.body, ids)
    if binding is not None and not ours:
        enums = {p.name: p.field.enum_type for p in binding.query if p.field.enum_type is not None}
        for name in query.keys() & enums.keys():
            names = {short: enums[name].values_by_number[n].name for n, short in enum_names(enums[name]).items()}
            query[name] = [names[one] for one in query[name]] if isinstance(query[name], list) else names[query[name]]
        body = body and canonical(binding, body)
    headers = {**NDJSON, **asked.headers, "Authorization": f"Bearer {fill(asked.key, ids)}"}
    return binding, {"method": asked.verb, "url": path, "params": query or None, "json": body, "headers": headers}


def fill(value: Any, ids: dict[str, str]) -> Any:
    """The value with ids in the places of their names."""
    if isinstance(value, str):
        return re.sub(r"\{([a-z ]+)\}", lambda match: ids[match[1]], value)
    if isinstance(value, dict):
        return {key: fill(one, ids) for key, one in value.items()}
    return [fill(one, ids) for one in value] if isinstance(value, list) else value


def canonical(binding: Binding, body: dict[str, Any]) -> Any:
    """A body of our profile in protobuf's own JSON; one that our profile refuses, as it is."""
    message = GetMessageClass(binding.method.input_type)()
    return body if from_json(body, message) else MessageToDict(message, preserving_proto_field_name=True)


@pytest.fixture(scope="module")
def account(gateway: Gateway) -> Account:
    return gateway.account()


@pytest.fixture(scope="module")
def ids(account: Account, pictures: list[Path]) -> dict[str, str]:
    """What the requests speak of."""
    found = {"key": account.key, "owner": account.name}
    with account.client() as client:
        found["asset"] = client.upload(pictures[0], name="cat")
        upload = {"asset_type": "file", "name": "never", "data": {"asset_type": "file"}}
        found["upload"] = client.post("/v1/assets", json=upload).json()["asset"]["id"]
        found["tune"] = client.tune("taken", [found["asset"]])["id"]
        for door in ("shim", "envoy"):
            found[f"cancelled by {door}"] = client.tune(f"cancelled by {door}", [found["asset"]])["id"]
        client.post(f"/v1/tune/{found['tune']}/cancel").raise_for_status()  # its events have an end
    return found


# ---------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def recorded(recorder: Recorder, envoy: Envoy) -> dict[str, Exchange]:
    return asyncio.run(record(recorder, envoy))


@pytest.fixture(scope="module")
def talked(account: Account, envoy: Envoy, ids: dict[str, str]) -> dict[str, Exchange]:
    return asyncio.run(talk(account, envoy, ids))


def test_every_route_parameter_and_body_brings_the_same_request(recorded: dict[str, Exchange]) -> None:
    assert {one.binding.method.name for one in recorded.values() if one.binding} == {
        method.name for service in SERVICES for method in service.methods
    }
    for name, exchange in recorded.items():
        shim, other, meant = exchange.asked
        assert shim == meant, name
        assert other == meant, name


def test_every_answer_is_the_same_but_for_what_the_contract_forces(
    recorded: dict[str, Exchange], talked: dict[str, Exchange]
) -> None:
    for name, exchange in {**recorded, **talked}.items():
        ours, theirs = exchange.told()
        assert ours == theirs, name


def test_gateway_answers_as_each_request_deserves(talked: dict[str, Exchange]) -> None:
    """Two doors that refuse everything would agree too."""
    refused = {
        "nothing uploaded": 400,
        "broken rules": 422,
        "an unknown file": 422,
        "a broken rule of a query": 422,
        "a taken name": 409,
        "a deleted tune": 404,
        "no such asset": 404,
        "a wrong key": 401,
        "no route": 404,
    }

    assert {name: one.shim.status_code for name, one in talked.items() if one.shim.is_error} == refused
    assert talked["a new tune"].shim.status_code == 201


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_each_difference_is_one(recorded: dict[str, Exchange], talked: dict[str, Exchange], difference: str) -> None:
    told = [exchange.told(without=(difference,)) for exchange in [*recorded.values(), *talked.values()]]

    assert any(ours != theirs for ours, theirs in told)


# What the shim reads in another way than Envoy: the request, and the two statuses.
READ_OTHERWISE = {
    "enum values": (Asked("GET", "/v1/tunes?tune_type=TUNE_TYPE_LORA_TUNE"), 422, 200),
    "types": (Asked("POST", "/v1/assets/{asset}/complete-upload", {"skip_validation": "true"}), 422, 200),
    "camelCase keys": (Asked("GET", "/v1/assets?engineType=colour"), 200, 400),
    "parameters beside a body": (Asked("POST", "/v1/tune?priority=colour", tune("beside", "{asset}")), 201, 400),
    "headers": (Asked("POST", "/v1/tune", tune("header", "{asset}"), headers={"Idempotency-Key": "k" * 256}), 422, 200),
    "wrong verbs": (Asked("PATCH", "/v1/tunes"), 405, 404),
    "HEAD": (Asked("HEAD", "/v1/tunes"), 200, 404),
}


@pytest.mark.parametrize("difference", READ_OTHERWISE)
def test_each_request_that_is_read_otherwise_is_one(
    account: Account, envoy: Envoy, ids: dict[str, str], difference: str
) -> None:
    asked, *expected = READ_OTHERWISE[difference]

    found = []
    for url, ours in ((account.url, True), (envoy.urls["gateway"], False)):
        sent = put(asked, ids, ours=ours)[1]
        found.append(httpx.request(**{**sent, "url": url + sent["url"]}).status_code)

    assert found == expected


def test_differences_are_those_of_the_page() -> None:
    section = API.read_text().split("## Another transcoder")[1].split("\n## ")[0]
    listed = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]  # the first is the heading

    assert sorted(listed) == sorted({*DIFFERENCES, *READ_OTHERWISE})

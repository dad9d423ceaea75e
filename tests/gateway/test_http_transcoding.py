"""Requests become rpcs: of our own services, and of a made-up one for the rules that ours do not use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass

from gateway.http.app import build
from gateway.http.bindings import bindings
from gateway.http.requests import Limits
from tests.servers.front import SERVICES, Front, front, tune_request
from tests.servers.kinds import KIND_SERVICE, KINDS
from tunesmith.v1 import tune_pb2


@pytest.fixture(params=["loopback", "socket"])
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    """Both ways from HTTP to the servicers; what a caller sees is the same."""
    async with front(socket=request.param == "socket", limits=Limits(body_bytes=100_000)) as made:
        yield made


# The contract's paths.


async def test_a_create_answers_201_with_the_tune(door: Front) -> None:
    answer = await door.http.post("/v1/tune", json=tune_request())

    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["idempotent-replay"] == "true"
    assert answer.json()["name"] == "stars"
    assert answer.json()["details"]["files"] == [{"file_id": "asset_1", "caption": "a red star"}]
    assert door.tunes.callers == ["key_1"]
    assert door.rpcs == [("CreateTune", "OK")]
    assert door.requests == [("/v1/tune", "POST", 201)]


@pytest.mark.parametrize("path", ["//v1/tune", "/v1//tune", "/v1/tune/", "//v1///tune//"])
async def test_slashes_too_many_are_none(door: Front, path: str) -> None:
    answer = await door.http.post(f"http://gateway{path}", json=tune_request())

    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({}, b""),
        ({"content-type": "application/x-www-form-urlencoded"}, b""),
        ({"content-type": "application/json"}, b"{}"),
    ],
)
async def test_a_cancel_needs_no_body_and_no_content_type(door: Front, headers: dict[str, str], content: bytes) -> None:
    answer = await door.http.post("/v1/tune/tune_1/cancel", headers=headers, content=content)

    assert answer.status_code == 200
    assert answer.json()["id"] == "tune_1"


async def test_a_delete_answers_an_empty_object(door: Front) -> None:
    answer = await door.http.delete("/v1/tune/tune_1")

    assert (answer.status_code, answer.text) == (200, "{}")


async def test_the_path_wins_over_the_body_and_its_type_there_does_not_matter(door: Front) -> None:
    answer = await door.http.post("/v1/tune/tune_1/cancel", json={"id": 5, "other": "x"})

    assert answer.status_code == 200
    assert door.tunes.asked[-1].id == "tune_1"


@pytest.mark.parametrize("name", ["a b", "a/b", "é", "a%", "..", "a?b#c", "owner:name", "a+b", "😀", "a;b=c&d"])
async def test_an_id_arrives_as_it_was_meant(door: Front, name: str) -> None:
    quoted = httpx.URL("http://gateway").copy_with(raw_path=b"/v1/tune/" + "".join(map(_quoted, name)).encode())

    answer = await door.http.get(quoted)

    assert answer.json()["id"] == name


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


async def test_head_answers_as_get_without_a_body(door: Front) -> None:
    got, headed = await door.http.get("/v1/tune/a"), await door.http.head("/v1/tune/a")

    assert headed.status_code == 200
    assert headed.content == b""
    assert headed.headers["content-length"] == got.headers["content-length"]


async def test_query_parameters_reach_their_fields(door: Front) -> None:
    query = "limit=5&offset=0&name=&trigger_words=a&trigger_words=b%20c&tune_type=lora_tune&unknown=1&engine=image%2Fx"

    answer = await door.http.get(f"/v1/tunes?{query}")

    asked = door.tunes.asked[-1]
    assert answer.json() == {"data": [], "has_more": False, "total": 2**53 + 1}
    assert (asked.limit, asked.offset, asked.engine) == (5, 0, "image/x")
    assert asked.HasField("name")
    assert not asked.HasField("base_checkpoint_id")
    assert list(asked.trigger_words) == ["a", "b c"]
    assert asked.tune_type == tune_pb2.TUNE_TYPE_LORA_TUNE


async def test_a_query_parameter_and_a_header_may_stand_beside_a_body(door: Front) -> None:
    await door.http.post("/v1/tune?validate_only=True", json=tune_request(), headers={"idempotency-key": "k"})

    assert door.tunes.asked[-1].validate_only is True
    assert door.tunes.asked[-1].request_id == "k"


async def test_a_header_that_contradicts_the_body_is_refused(door: Front) -> None:
    body = tune_request() | {"request_id": "one"}

    same = await door.http.post("/v1/tune", json=body, headers={"idempotency-key": "one"})
    other = await door.http.post("/v1/tune", json=body, headers={"idempotency-key": "two"})

    assert same.status_code == 201
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]


async def test_a_bound_query_parameter_reads_no_other_field_of_a_body(door: Front) -> None:
    answer = await door.http.post("/v1/tune?name=other", json=tune_request())

    assert answer.json()["name"] == "stars"


@pytest.mark.parametrize("text", [b"true", b"5", b'"a"', b"[]", b"null", b"[{}]"])
async def test_a_body_that_is_no_object_is_refused(door: Front, text: bytes) -> None:
    answer = await door.http.post("/v1/tune", content=text, headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body"]


async def test_requests_at_the_same_time_do_not_mix(door: Front) -> None:
    answers = await asyncio.gather(*(door.http.get(f"/v1/tune/{number}") for number in range(50)))

    assert [answer.json()["id"] for answer in answers] == [str(number) for number in range(50)]


def test_every_rpc_of_ours_has_a_rule() -> None:
    bound = {binding.method.full_name for binding in bindings(SERVICES)}

    assert bound == {method.full_name for service in SERVICES for method in service.methods}


# The rules that our services do not use.


class EchoChannel:
    """Answers each rpc with its request, and remembers the rpc's name."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def unary_unary(self, method: str, **serializers: Any) -> Any:
        def call(request: Any, metadata: Any, timeout: Any) -> Any:
            self.called.append(method.rpartition("/")[2])
            return Echo(request)

        return call


class Echo:
    def __init__(self, message: Any) -> None:
        self._message = message

    def __await__(self) -> Any:
        return iter_to_awaitable(self._message).__await__()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(("x-extra", "yes"), ("grpc-secret", "no"), ("raw-bin", b"no"))


async def iter_to_awaitable(value: Any) -> Any:
    return value


class Kinds:
    def __init__(self) -> None:
        self.channel = EchoChannel()
        channel: Any = self.channel
        self.app = build(channel, [KIND_SERVICE])

    async def ask(self, verb: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(verb, path, **more)


@pytest.fixture
def kinds() -> Kinds:
    return Kinds()


@pytest.mark.parametrize(
    ("verb", "path", "rpc", "key", "value"),
    [
        ("GET", "/v1/shelves/1/books/a%2Fb", "Named", "name", "shelves/1/books/a%2Fb"),
        ("GET", "/v1/files/a/b/c.png", "Any", "name", "a/b/c.png"),
        ("GET", "/v1/kinds/x", "Read", "inner", {"string_value": "x", "deeper": None, "int_value": 0}),
        ("GET", "/v2/kinds/x", "Read", "inner", {"string_value": "x", "deeper": None, "int_value": 0}),
        ("POST", "/v2/kinds", "Read", "name", ""),
        ("GET", "/v1/kinds/special", "Special", "name", ""),
        ("POST", "/v1/kinds/x:archive", "Archive", "name", "x"),
        ("PURGE", "/v1/kinds/x", "Purge", "name", "x"),
    ],
)
async def test_each_kind_of_rule_reaches_its_rpc(
    kinds: Kinds, verb: str, path: str, rpc: str, key: str, value: Any
) -> None:
    answer = await kinds.ask(verb, path)

    assert answer.status_code == 200
    assert kinds.channel.called == [rpc]
    assert answer.json()[key] == value


async def test_nested_repeated_and_typed_query_parameters_are_read(kinds: Kinds) -> None:
    parameters = {
        "inner.string_value": "a",
        "inner.int_value": "-3",
        "one_bool": "true",
        "one_double": "1.5e3",
        "one_bytes": "aGk=",
        "maybe_uint64": str(2**64 - 1),
        "many_int32": ["1", "2"],
        "many_color": ["red", "dark_blue"],
        "color": "dark_blue",
        "at": "2026-01-31T12:00:00Z",
        "during": "1.5s",
        "many_at": ["2026-01-31T12:00:00Z"],
        "maybe_string": "",
    }

    said = (await kinds.ask("GET", "/v1/query", params=parameters)).json()

    assert said["inner"] == {"string_value": "a", "deeper": None, "int_value": -3}
    assert (said["one_bool"], said["one_double"], said["one_bytes"]) == (True, 1500.0, "aGk=")
    assert (said["maybe_uint64"], said["many_int32"]) == (2**64 - 1, [1, 2])
    assert (said["many_color"], said["color"]) == (["red", "dark_blue"], "dark_blue")
    assert (said["at"], said["during"], said["many_at"]) == ("2026-01-31T12:00:00Z", "1.500s", ["2026-01-31T12:00:00Z"])
    assert said["maybe_string"] == ""
    assert said["maybe_bool"] is None


async def test_a_field_may_be_the_body_and_a_field_the_answer(kinds: Kinds) -> None:
    inner = await kinds.ask("POST", "/v1/kinds/x/inner?one_int32=5", json={"string_value": "a"})
    strings = await kinds.ask("PUT", "/v1/kinds/x/strings", json=["a", "b"])

    assert inner.json() == {"string_value": "a", "deeper": None, "int_value": 0}
    assert strings.json() == ["a", "b"]


async def test_metadata_of_the_answer_become_headers_but_for_grpcs_own(kinds: Kinds) -> None:
    answer = await kinds.ask("GET", "/v1/query")

    assert answer.headers["x-extra"] == "yes"
    assert "grpc-secret" not in answer.headers
    assert "raw-bin" not in answer.headers


async def test_a_path_allows_all_verbs_of_its_rules(kinds: Kinds) -> None:
    answer = await kinds.ask("PATCH", "/v1/kinds/x")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, PURGE"


def test_a_made_up_message_has_no_field_that_a_rule_forgot() -> None:
    query = next(binding for binding in bindings([KIND_SERVICE]) if binding.method.name == "Query")
    names = {parameter.name for parameter in query.query}

    assert {"name", "inner.string_value", "inner.int_value", "at", "many_during", "one_fixed64"} <= names
    assert not {"by_string", "many_inner", "inner.deeper.string_value"} & names
    assert GetMessageClass(KINDS)().DESCRIPTOR.full_name == "tests.Kinds"

"""Odd texts, numbers and lists: one table, asked over HTTP and over gRPC, each with its documented answer. What is
refused is told at its place, and leaves nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from gateway.http.json import to_json
from gateway.status import received
from tests.servers import photographs
from tests.servers.gateway import Gateway
from tests.servers.odd_requests import ALL, TAKEN, Odd
from tests.servers.service import Client
from tunesmith.v1 import asset_service_pb2_grpc, tune_service_pb2, tune_service_pb2_grpc

PATHS = {"CreateTune": "/v1/tune?validate_only=true", "CreateAsset": "/v1/assets"}


@pytest.fixture(scope="module")
def key(key_of: Callable[..., str]) -> str:
    return key_of("odd")


@pytest.fixture(scope="module")
def http(url: str, key: str) -> Iterator[Client]:
    with Client(url, key) as client:
        yield client


@pytest.fixture(scope="module")
def call(gateway: Gateway, key: str) -> Iterator[Callable[[str, Message | bytes], Any]]:
    """Calls an rpc by its name, with a message; or one of TuneService with bytes that may be none."""
    with grpc.insecure_channel(gateway.ready["grpc"]) as channel:
        stubs = tune_service_pb2_grpc.TuneServiceStub(channel), asset_service_pb2_grpc.AssetServiceStub(channel)

        def call(rpc: str, request: Message | bytes) -> Any:
            metadata = (("authorization", f"Bearer {key}"),)
            if isinstance(request, bytes):
                raw: Any = channel.unary_unary(f"/tunesmith.v1.TuneService/{rpc}")
                return raw(request, metadata=metadata)
            stub = next(stub for stub in stubs if hasattr(stub, rpc))
            return getattr(stub, rpc)(request, metadata=metadata)

        yield call


@pytest.fixture(scope="module")
def file_id(http: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    pictures: list[Path] = photographs.photographs(tmp_path_factory.mktemp("photographs"))
    return http.upload(pictures[0])


def resource(odd: Odd, answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["asset"] if odd.rpc == "CreateAsset" else answer
    return found


def at(odd: Odd, answer: dict[str, Any]) -> Any:
    """What the answer has at the request's odd place. An empty caption is as good as none."""
    found: Any = resource(odd, answer)
    for step in odd.place:
        found = found[step]
    return "" if found is None else found


@pytest.mark.parametrize("odd", ALL, ids=str)
def test_odd_request_is_taken_or_refused_at_its_place_over_http(http: Client, file_id: str, odd: Odd) -> None:
    path = PATHS[odd.rpc] if odd.reason == TAKEN else PATHS[odd.rpc].partition("?")[0]

    content = json.dumps(odd.body(file_id))
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})

    if odd.reason == TAKEN:
        assert answer.is_success, answer.text
        assert at(odd, answer.json()) == odd.value
        return
    assert answer.status_code == 422, answer.text
    told = {(tuple(fault["loc"]), fault["type"]) for fault in answer.json()["detail"]}
    if isinstance(odd.value, float) and not math.isfinite(odd.value):  # JSON has no such number
        number = json.dumps(odd.value)
        assert told == {(("body", content.index(number)), "json_invalid"), (tuple(odd.loc), "finite_number")}
        assert all(number in fault["msg"] for fault in answer.json()["detail"])
    else:
        assert (tuple(odd.loc), odd.type) in told
        # Of a list that is odd each element is told of besides.
        assert {loc[: len(odd.loc)] for loc, _ in told} == {tuple(odd.loc)}
    assert http.get("/v1/tunes").json()["total"] == 0


@pytest.mark.parametrize("odd", ALL, ids=str)
def test_odd_request_is_taken_or_refused_at_its_place_over_grpc(
    call: Callable[[str, Message | bytes], Any], file_id: str, odd: Odd
) -> None:
    request = odd.message(file_id)
    if odd.rpc == "CreateTune" and odd.reason == TAKEN:
        request.validate_only = True

    if odd.reason == TAKEN:
        assert at(odd, to_json(call(odd.rpc, request))) == odd.value
        return
    with pytest.raises(grpc.RpcError) as caught:
        call(odd.rpc, request)
    error: Any = caught.value
    told = received(error.code(), error.details(), error.trailing_metadata())

    assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    assert told.reason == ("INVALID_REFERENCE" if odd.reason == "INVALID_REFERENCE" else "INVALID_REQUEST")
    assert (odd.field, odd.reason) in [(violation.field, violation.reason) for violation in told.violations]
    assert all(one.field.startswith(odd.field) for one in told.violations if one.reason != "AND_MORE")
    assert call("ListTunes", tune_service_pb2.ListTunesRequest()).total == 0


@pytest.mark.parametrize("where", ["odd", "tunesmith:tiny-shapes", "sks", "a caption", "a key", "a value"])
@pytest.mark.parametrize(
    "broken", [b"\xed\xa0\x80", b"\xff\xfe\xfd", b"\xc0\xaf!"], ids=["surrogate", "none", "overlong"]
)
def test_text_that_is_no_utf_8_is_no_message(
    call: Callable[[str, Message | bytes], Any], file_id: str, where: str, broken: bytes
) -> None:
    request: Any = Odd("CreateTune", ("details", "files", 0, "caption"), "a caption").message(file_id)
    request.metadata["a key"] = "a value"
    content = request.SerializeToString()

    with pytest.raises(grpc.RpcError) as caught:
        call("CreateTune", content.replace(where.encode(), broken.ljust(len(where), b"x")[: len(where)], 1))

    error: Any = caught.value
    told = received(error.code(), error.details(), error.trailing_metadata())
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize("where", ["odd", "sks", "a caption", "a key", "a value"])
def test_a_lone_surrogate_is_refused_wherever_it_stands(http: Client, file_id: str, where: str) -> None:
    body = Odd("CreateTune", ("details", "files", 0, "caption"), "a caption").body(file_id)
    content = json.dumps(body | {"metadata": {"a key": "a value"}})
    assert f'"{where}"' in content

    content = content.replace(f'"{where}"', '"\\ud800"')
    answer = http.post("/v1/tune", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422, answer.text

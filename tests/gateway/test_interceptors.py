"""What a native gRPC caller sees: over a real server, on TCP, as a stranger would come."""

from __future__ import annotations

import asyncio
import math
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import structlog
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway import interceptors, status
from gateway.interceptors import scope_of
from gateway.quotas import Quotas, rate_limited
from store import errors
from tests.servers.front import CALLER, KEYS, FakeTunes
from tunesmith.trainer.v1 import trainer_service_pb2 as stream
from tunesmith.trainer.v1.trainer_service_pb2_grpc import (
    TrainerServiceServicer,
    TrainerServiceStub,
    add_TrainerServiceServicer_to_server,
)
from tunesmith.v1 import tune_pb2
from tunesmith.v1 import tune_service_pb2 as api
from tunesmith.v1.tune_service_pb2_grpc import TuneServiceStub, add_TuneServiceServicer_to_server

KEY = (("authorization", "Bearer ts_all"),)


class FakeTrainers(TrainerServiceServicer):
    """Tells each trainer who it is."""

    async def Connect(self, request_iterator: Any, context: Any) -> AsyncIterator[stream.GatewayMessage]:  # noqa: N802
        async for _ in request_iterator:
            yield stream.GatewayMessage(drain=stream.Drain(reason=interceptors.trainer_id()))


@dataclass
class Native:
    tunes: FakeTunes
    channel: grpc.aio.Channel
    stub: Any
    rpcs: list[tuple[str, str]]
    ended: asyncio.Event
    """Set once an rpc has ended."""
    asked_for: list[str] = field(default_factory=list)
    """Secrets that the store was asked about."""
    limited: list[str] = field(default_factory=list)
    """Limits that calls were refused for."""


@pytest.fixture
async def native() -> AsyncIterator[Native]:
    tunes = FakeTunes()
    limited: list[str] = []
    rpcs: list[tuple[str, str]] = []
    asked_for: list[str] = []

    ended = asyncio.Event()

    def record(method: str, code: str, seconds: float) -> None:
        rpcs.append((method.rpartition("/")[2], code))
        ended.set()

    async def authenticate(secret: str) -> Any:
        asked_for.append(secret)
        return KEYS.get(secret)

    async def authenticate_trainer(secret: str) -> str | None:
        return "trainer-1" if secret == "tt_1" else None

    server = grpc.aio.server(
        interceptors=interceptors.chain(
            authenticate=authenticate,
            authenticate_trainer=authenticate_trainer,
            record=record,
            quotas=Quotas(streams=2, refused=limited.append),
        ),
        options=(("grpc.so_reuseport", 0),),
    )
    add_TuneServiceServicer_to_server(tunes, server)
    add_TrainerServiceServicer_to_server(FakeTrainers(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Native(tunes, channel, TuneServiceStub(channel), rpcs, ended, asked_for, limited)
    await server.stop(0)


async def refusal_of(call: Any) -> tuple[grpc.aio.AioRpcError, Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    rich = Status()
    for key, value in caught.value.trailing_metadata() or ():
        if key == status.STATUS_KEY:
            rich.ParseFromString(value)
    return caught.value, rich


def details(rich: Status, kind: type[Any]) -> Any:
    found = kind()
    assert any(packed.Unpack(found) for packed in rich.details), f"no {kind.__name__}"
    return found


async def test_a_rule_broken_is_told_with_every_violation(native: Native) -> None:
    error, rich = await refusal_of(native.stub.CreateTune(api.CreateTuneRequest(name=".."), metadata=KEY))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rich.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    found = {v.field: v.reason for v in details(rich, BadRequest).field_violations}
    assert found == {"name": "NAME_DOTS", "details": "REQUIRED"}
    assert details(rich, ErrorInfo).domain == "tunesmith"
    await asyncio.wait_for(native.ended.wait(), 5)  # the answer is sent a moment before the rpc ends
    assert native.rpcs == [("CreateTune", "INVALID_ARGUMENT")]


@pytest.mark.parametrize("letter", ["x", "%", "é", "名", "🦊", "\x01"])
async def test_an_error_of_whatever_letters_fits_into_a_clients_metadata(native: Native, letter: str) -> None:
    sentence = f"there is no file {letter * 128!r}"
    faults = [(f"details.lora_tune.files[{number}].file_id", sentence) for number in range(1000)]
    native.tunes.fails = errors.InvalidReference(faults)

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY))

    violations = details(rich, BadRequest).field_violations
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations[0].description == sentence
    assert violations[-1].description == f"and {1000 - len(violations) + 1} more"
    as_sent = (
        len(quote(error.details() or "", safe=string.punctuation.replace("%", " ")))
        + len(rich.SerializeToString()) * 4 // 3
    )
    assert as_sent < 8192 - 500, "what is named, and the request's id, want their room"


async def test_a_request_id_comes_back_with_answers_and_with_errors(native: Native) -> None:
    named = (*KEY, ("x-request-id", "mine"))

    call = native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=named)
    await call
    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(), metadata=named))

    assert ("x-request-id", "mine") in tuple(await call.trailing_metadata())
    assert ("x-request-id", "mine") in tuple(error.trailing_metadata() or ())
    assert details(rich, RequestInfo).request_id == "mine"


async def test_a_store_error_is_a_rich_status(native: Native) -> None:
    native.tunes.fails = errors.QueueFull("Full.", 1.5)

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY))

    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Full.")
    assert details(rich, ErrorInfo).reason == "QUEUE_FULL"
    assert details(rich, RetryInfo).retry_delay.ToTimedelta().total_seconds() == 1.5


async def test_a_fault_of_ours_leaks_nothing(native: Native) -> None:
    native.tunes.fails = RuntimeError("the password is hunter2")

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in f"{error.details()}{rich}{error.trailing_metadata()}"
    await asyncio.wait_for(native.ended.wait(), 5)  # the answer is sent a moment before the rpc ends
    assert native.rpcs == [("GetTune", "INTERNAL")]


async def test_a_refusal_that_cannot_be_told_is_a_fault_of_ours(native: Native) -> None:
    native.tunes.fails = rate_limited("Too often.", math.nan)

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY))

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "Internal error.")
    assert details(rich, ErrorInfo).reason == "INTERNAL"


async def test_a_servicers_own_abort_stays_as_it_is(native: Native) -> None:
    error, _ = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="aborts"), metadata=KEY))

    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "On purpose.")
    await asyncio.wait_for(native.ended.wait(), 5)  # the answer is sent a moment before the rpc ends
    assert native.rpcs == [("GetTune", "ABORTED")]


async def _first(call: Any) -> Any:
    return await anext(aiter(call))


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer tt_1"),), (("authorization", "ts_all"),)])
async def test_a_trainers_token_and_no_key_open_no_callers_rpc(native: Native, metadata: Any) -> None:
    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=metadata))

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(rich, ErrorInfo).reason in ("KEY_INVALID", "KEY_MISSING")


async def test_a_callers_key_opens_no_trainers_rpc(native: Native) -> None:
    call = TrainerServiceStub(native.channel).Connect(iter(()), metadata=KEY)

    error, _ = await refusal_of(_first(call))

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_trainer_is_known_for_as_long_as_its_stream_lasts(native: Native) -> None:
    stub: Any = TrainerServiceStub(native.channel)
    call = stub.Connect(metadata=(("authorization", "Bearer tt_1"),))

    for _ in range(2):
        await call.write(stream.TrainerMessage(draining=stream.Draining()))
        assert (await call.read()).drain.reason == "trainer-1"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_health_is_open(native: Native) -> None:
    stub: Any = health_pb2_grpc.HealthStub(native.channel)

    answer = await stub.Check(health_pb2.HealthCheckRequest())

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_bytes_that_are_no_message_are_the_callers_fault(native: Native) -> None:
    one: Any = native.channel.unary_unary("/tunesmith.v1.TuneService/GetTune")
    many: Any = native.channel.unary_stream("/tunesmith.v1.TuneService/WatchTune")

    refusals = [await refusal_of(one(b"\xff\xff", metadata=KEY)), await refusal_of(_first(many(b"\xff", metadata=KEY)))]
    stranger, _ = await refusal_of(one(b"\xff\xff"))

    for error, rich in refusals:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(rich, ErrorInfo).reason == "MALFORMED_MESSAGE"
    assert stranger.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not native.tunes.asked


async def test_a_method_that_nobody_serves_is_unimplemented(native: Native) -> None:
    nothing: Any = native.channel.unary_unary("/tunesmith.v1.TuneService/Nothing")

    error, _ = await refusal_of(nothing(b"", metadata=KEY))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_store_is_asked_once_for_many_requests(native: Native) -> None:
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY)
    await asyncio.gather(*(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY) for _ in range(10)))

    assert native.asked_for == ["ts_all"]


async def test_a_caller_that_leaves_a_stream_ends_it(native: Native) -> None:
    native.tunes.events = [tune_pb2.TuneEvent(id=number) for number in range(100_000)]
    call = native.stub.WatchTune(api.WatchTuneRequest(id="a"), metadata=KEY)

    await call.read()
    call.cancel()
    await native.ended.wait()

    assert native.rpcs == [("WatchTune", "CANCELLED")]


async def test_a_status_fits_into_what_a_native_client_takes(native: Native) -> None:
    request = api.CreateTuneRequest(name="a")
    for _ in range(1000):
        request.details.lora_tune.files.add()

    error, rich = await refusal_of(native.stub.CreateTune(request, metadata=KEY))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details(rich, BadRequest).field_violations
    assert 20 < len(violations) < 1000
    assert violations[-1].reason == "AND_MORE"


async def test_what_is_to_be_judged_only_never_reaches_the_service(native: Native) -> None:
    metadata = (*KEY, (status.JUDGE_ONLY, "1"))

    error, _ = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=metadata))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not native.tunes.asked


async def test_who_calls_too_often_is_told_when_to_call_again(native: Native) -> None:
    slow = (("authorization", "Bearer ts_slow"),)
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=slow)

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=slow))
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(rich, ErrorInfo).reason == "RATE_LIMITED"
    assert 90 < details(rich, RetryInfo).retry_delay.ToTimedelta().total_seconds() <= 100
    assert native.limited == ["requests"]


async def test_a_rate_that_nobody_may_set_any_more_is_the_least_that_one_may(native: Native) -> None:
    crawls = (("authorization", "Bearer ts_crawls"),)
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=crawls)

    error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=crawls))

    assert error.details() == "Your tenant may make 0.001 requests a second, and has made more."
    assert 900 < details(rich, RetryInfo).retry_delay.ToTimedelta().total_seconds() <= 1000


async def test_a_native_call_is_logged_with_its_key_also_where_it_is_refused(native: Native) -> None:
    reader = (("authorization", "Bearer ts_reader"),)
    stub: Any = health_pb2_grpc.HealthStub(native.channel)
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY)
        await refusal_of(native.stub.CancelTune(api.CancelTuneRequest(id="a"), metadata=reader))
        await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=(("authorization", "Bearer ts_x"),)))
        await stub.Check(health_pb2.HealthCheckRequest())
        while len(native.rpcs) < 4:  # each is logged a moment after it is answered
            native.ended.clear()
            await asyncio.wait_for(native.ended.wait(), 5)

    answered = {line["code"]: line for line in logs if line["action"] == "rpc.answered"}
    keys = {code: (line.get("key_id"), line.get("tenant_id")) for code, line in answered.items()}
    mine = CALLER.tenant_id
    assert keys == {"OK": ("key_1", mine), "PERMISSION_DENIED": ("key_2", mine), "UNAUTHENTICATED": (None, None)}
    assert answered["OK"]["event"].startswith("/tunesmith.v1.TuneService/GetTune was answered OK after ")
    assert "ts_" not in str(logs)


async def test_a_tenants_open_streams_are_bounded_and_one_that_ends_makes_room(native: Native) -> None:
    native.tunes.events = [tune_pb2.TuneEvent(id=1)]
    native.tunes.pause_after = asyncio.Event()
    request = api.WatchTuneRequest(id="a")
    watches = [native.stub.WatchTune(request, metadata=KEY) for _ in range(2)]
    for watch in watches:
        await watch.read()

    error, rich = await refusal_of(_first(native.stub.WatchTune(request, metadata=KEY)))
    native.ended.clear()
    watches[0].cancel()
    await native.ended.wait()
    again = native.stub.WatchTune(request, metadata=KEY)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(rich, ErrorInfo).reason == "TOO_MANY_STREAMS"
    assert details(rich, RetryInfo).retry_delay.ToTimedelta().total_seconds() == 5
    assert native.limited == ["streams"]
    assert (await again.read()).id == 1


async def test_wrong_keys_from_one_address_are_soon_looked_up_no_more_and_known_ones_go_on(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.credentials.WRONG", 0.01)
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY)
    codes = []
    for number in range(3):  # who calls gRPC directly cannot say from where it comes
        wrong = (("authorization", f"Bearer ts_wrong{number}"), ("x-tunesmith-peer", f"10.0.0.{number}"))
        error, rich = await refusal_of(native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=wrong))
        codes.append(error.code())

    assert codes == [grpc.StatusCode.UNAUTHENTICATED, *[grpc.StatusCode.RESOURCE_EXHAUSTED] * 2]
    assert details(rich, ErrorInfo).reason == "RATE_LIMITED"
    assert native.asked_for == ["ts_all", "ts_wrong0"]
    await native.stub.GetTune(api.GetTuneRequest(id="a"), metadata=KEY)


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        ("/tunesmith.v1.TuneService/CreateTune", "tune:write"),
        ("/tunesmith.v1.TuneService/CancelTune", "tune:write"),
        ("/tunesmith.v1.TuneService/WatchTune", "tune:read"),
        ("/tunesmith.v1.AssetService/GetAsset", "asset:read"),
        ("/tunesmith.v1.AssetService/DeleteAsset", "asset:write"),
        ("/tunesmith.v1.OtherService/Unheard", "other:write"),
    ],
)
def test_an_rpc_wants_the_scope_of_its_noun_and_verb(method: str, scope: str) -> None:
    assert scope_of(method) == scope

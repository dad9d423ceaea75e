"""Calls over gRPC whose request does not come, or half of it, end; over a real server, and by raw HTTP/2."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from gateway import interceptors
from gateway.late_requests import InTime
from tests.servers.front import KEYS, FakeTunes
from tunesmith.v1 import tune_pb2
from tunesmith.v1 import tune_service_pb2 as api
from tunesmith.v1.tune_service_pb2_grpc import TuneServiceStub, add_TuneServiceServicer_to_server

SERVICE = "/tunesmith.v1.TuneService/"
KEY = (("authorization", "Bearer ts_all"),)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEADERS, RESET, END_STREAM = 1, 3, 1  # of HTTP/2's frames


@dataclass
class Server:
    tunes: FakeTunes
    port: int
    channel: Any
    ended: asyncio.Queue[tuple[str, str]]
    """Method and code of each call that the gatekeeper has seen."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """One that waits for a request for 0.3 s."""
    ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def authenticate(secret: str) -> Any:
        return KEYS.get(secret)

    async def nobody(secret: str) -> None:
        return None

    chain = interceptors.chain(
        authenticate=authenticate,
        authenticate_trainer=nobody,
        record=lambda method, code, seconds: ended.put_nowait((method.rpartition("/")[2], code)),
    )
    tunes = FakeTunes()
    serving = grpc.aio.server(interceptors=[InTime(0.3), *chain])
    add_TuneServiceServicer_to_server(tunes, serving)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), serving)
    reflection.enable_server_reflection([SERVICE.strip("/")], serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    await serving.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Server(tunes, port, channel, ended)
    await serving.stop(0)


async def never() -> AsyncIterator[bytes]:
    """No message, and not the end either."""
    await asyncio.Event().wait()
    yield b""


async def none() -> AsyncIterator[bytes]:
    """No message."""
    return
    yield b""


async def refusal_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call.read() if hasattr(call, "read") else call, 20)
    return caught.value


def reason_of(refusal: grpc.aio.AioRpcError) -> str:
    metadata = dict(refusal.trailing_metadata() or ())
    info = ErrorInfo()
    assert Status.FromString(metadata["grpc-status-details-bin"]).details[0].Unpack(info)
    return str(info.reason)


@pytest.mark.parametrize("method", ["GetTune", "WatchTune"])
async def test_call_whose_message_does_not_come_is_ended_and_counted(method: str, server: Server) -> None:
    kind = server.channel.stream_stream if method == "WatchTune" else server.channel.stream_unary
    refusal = await refusal_of(kind(SERVICE + method)(never(), metadata=KEY))

    assert refusal.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(refusal) == "REQUEST_TOO_SLOW"
    assert server.tunes.asked == []
    assert await asyncio.wait_for(server.ended.get(), 20) == (method, "DEADLINE_EXCEEDED")


async def test_call_without_a_key_and_health_checks_end_too(server: Server) -> None:
    stranger = server.channel.stream_unary(SERVICE + "GetTune")(never())
    check = server.channel.stream_unary("/grpc.health.v1.Health/Check")(never())
    reflecting = server.channel.stream_stream(REFLECTION)(never())

    refusals = [await refusal_of(call) for call in (stranger, check, reflecting)]

    assert [refusal.code() for refusal in refusals] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 3
    assert [reason_of(refusal) for refusal in refusals] == ["REQUEST_TOO_SLOW"] * 3


async def test_reflection_stream_answers_and_ends_once_no_further_message_comes(server: Server) -> None:
    stubs: Any = reflection_pb2_grpc  # its type stubs know no asynchronous channel
    call = stubs.ServerReflectionStub(server.channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await asyncio.wait_for(call.read(), 20)

    refusal = await refusal_of(call)

    assert [service.name for service in answer.list_services_response.service] == [SERVICE.strip("/")]
    assert reason_of(refusal) == "REQUEST_TOO_SLOW"
    assert await asyncio.wait_for(server.ended.get(), 20) == ("ServerReflectionInfo", "DEADLINE_EXCEEDED")


async def test_reflection_stream_that_its_caller_ends_is_no_late_one(server: Server) -> None:
    stubs: Any = reflection_pb2_grpc
    call = stubs.ServerReflectionStub(server.channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()

    answers = [answer async for answer in call]

    assert len(answers) == 1
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("path", "metadata", "code", "reason"),
    [
        (SERVICE + "GetTune", KEY, "INVALID_ARGUMENT", "MALFORMED_MESSAGE"),
        (SERVICE + "GetTune", (), "UNAUTHENTICATED", "KEY_MISSING"),
        ("/grpc.health.v1.Health/Check", (), "INVALID_ARGUMENT", "MALFORMED_MESSAGE"),
    ],
)
async def test_call_without_a_message_is_refused_after_its_key_and_counted(
    path: str, metadata: Any, code: str, reason: str, server: Server
) -> None:
    refusal = await refusal_of(server.channel.stream_unary(path)(none(), metadata=metadata))

    assert (refusal.code().name, reason_of(refusal)) == (code, reason)
    assert "x-request-id" in dict(refusal.trailing_metadata() or ())
    assert server.tunes.asked == []
    assert await asyncio.wait_for(server.ended.get(), 20) == (path.rpartition("/")[2], code)


async def test_call_that_is_whole_in_time_is_served_for_as_long_as_it_takes(server: Server) -> None:
    server.tunes.pause = asyncio.Event()
    server.tunes.events = [tune_pb2.TuneEvent(id=1), tune_pb2.TuneEvent(id=2)]
    stub: Any = TuneServiceStub(server.channel)
    watch = stub.WatchTune(api.WatchTuneRequest(id="tune_1"), metadata=KEY)
    late = server.channel.stream_unary(SERVICE + "GetTune")(never(), metadata=KEY)

    assert (await stub.GetTune(api.GetTuneRequest(id="tune_1"), metadata=KEY)).id == "tune_1"
    await refusal_of(late)  # so the time is over
    server.tunes.pause.set()
    seen = [event.id async for event in watch]
    checks: Any = health_pb2_grpc.HealthStub(server.channel)
    checked = await checks.Check(health_pb2.HealthCheckRequest())

    assert seen == [1, 2]
    assert checked.status == health_pb2.HealthCheckResponse.SERVING


async def test_caller_that_leaves_a_watch_ends_it(server: Server) -> None:
    server.tunes.events, server.tunes.pause_after = [tune_pb2.TuneEvent(id=1)], asyncio.Event()
    stub: Any = TuneServiceStub(server.channel)
    watch = stub.WatchTune(api.WatchTuneRequest(id="tune_1"), metadata=KEY)
    await watch.read()

    watch.cancel()

    await asyncio.wait_for(server.tunes.left.wait(), 20)


async def test_half_a_message_ends_its_call(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    fields = {":method": "POST", ":scheme": "http", ":path": SERVICE + "GetTune", ":authority": "a", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **dict(KEY)}
    literal = b"".join(b"\0" + _short(name) + _short(value) for name, value in fields.items())
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0))
    writer.write(_frame(HEADERS, 4, 1, literal) + _frame(0, 0, 1, b"\0" + struct.pack(">I", 100) + b"half"))

    async with asyncio.timeout(20):
        while True:
            length, kind, flags, stream = struct.unpack(">3sBBI", await reader.readexactly(9))
            await reader.readexactly(int.from_bytes(length))
            if stream == 1 and (kind == RESET or (kind == HEADERS and flags & END_STREAM)):
                break
    writer.close()

    assert await asyncio.wait_for(server.ended.get(), 20) == ("GetTune", "DEADLINE_EXCEEDED")


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload

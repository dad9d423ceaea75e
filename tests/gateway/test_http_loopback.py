"""What a servicer sees through the loopback is what it sees through a channel.

Most of that is held by the tests of http, which run over both; here stands what they do not touch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import grpc
import pytest

from gateway.http.loopback import Loopback

seen: ContextVar[str] = ContextVar("seen", default="nothing")


class Servicer:
    """Each method is an rpc."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.context: Any = None

    async def echo(self, request: str, context: Any) -> str:
        seen.set(request)
        self.context = context
        context.add_done_callback(lambda done: self.ended.set())
        return f"{request} {dict(context.invocation_metadata())}"

    async def hangs(self, request: str, context: Any) -> str:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return ""

    async def sets_a_code(self, request: str, context: Any) -> str:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("lost")
        context.set_trailing_metadata((("a", "b"),))
        return ""

    async def breaks(self, request: str, context: Any) -> str:
        raise KeyError("secret")

    async def counts(self, request: str, context: Any) -> AsyncIterator[int]:
        seen.set("counting")
        try:
            for number in range(1000):
                assert seen.get() == "counting"
                yield number
        finally:
            self.ended.set()


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def loopback(servicer: Servicer) -> Loopback:
    made = Loopback([])
    unary = ("echo", "hangs", "sets_a_code", "breaks")
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in unary}
    made.add_registered_method_handlers("s", handlers)
    made.add_registered_method_handlers("s", {"counts": grpc.unary_stream_rpc_method_handler(servicer.counts)})
    return made


async def call(loopback: Loopback, name: str, seconds: float | None = None) -> Any:
    return await loopback.unary_unary(f"/s/{name}")("hello", metadata=(("k", "v"),), timeout=seconds)


async def refused(loopback: Loopback, name: str, seconds: float | None = None) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(loopback, name, seconds)
    return caught.value


async def test_a_servicer_has_a_task_of_its_own(loopback: Loopback, servicer: Servicer) -> None:
    assert await call(loopback, "echo") == "hello {'k': 'v'}"
    assert seen.get() == "nothing"
    assert servicer.ended.is_set()
    assert servicer.context.done()
    assert not servicer.context.cancelled()


async def test_a_deadline_cancels_the_servicer(loopback: Loopback, servicer: Servicer) -> None:
    error = await refused(loopback, "hangs", seconds=0.01)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert servicer.ended.is_set()


async def test_a_caller_that_is_cancelled_cancels_the_servicer(loopback: Loopback, servicer: Servicer) -> None:
    calling = asyncio.create_task(call(loopback, "hangs"))
    await servicer.started.wait()
    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await calling
    assert servicer.ended.is_set()


async def test_a_code_set_and_not_aborted_with_is_an_error_too(loopback: Loopback) -> None:
    error = await refused(loopback, "sets_a_code")

    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "lost")
    assert tuple(error.trailing_metadata() or ()) == (("a", "b"),)


async def test_an_exception_that_nobody_translated_leaks_nothing(loopback: Loopback) -> None:
    error = await refused(loopback, "breaks")

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error)


@pytest.mark.parametrize("name", ["nothing", "counts"])
async def test_what_is_not_served_is_unimplemented(loopback: Loopback, name: str) -> None:
    assert (await refused(loopback, name)).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stream_keeps_its_context_from_message_to_message(loopback: Loopback) -> None:
    stream = loopback.unary_stream("/s/counts")("x", metadata=(), timeout=None)

    messages = [await asyncio.create_task(stream.read()) for _ in range(1001)]

    assert messages == [*range(1000), grpc.aio.EOF]
    assert await stream.read() is grpc.aio.EOF


async def test_a_stream_that_is_cancelled_ends_its_servicer(loopback: Loopback, servicer: Servicer) -> None:
    stream = loopback.unary_stream("/s/counts")("x", metadata=(), timeout=None)

    assert await stream.read() == 0
    stream.cancel()
    await servicer.ended.wait()

"""Ends calls over gRPC whose request does not come: gRPC itself waits for a message for as long as its caller stays,
and holds what has come of it. Put before the gatekeeper by the server; the HTTP shim's callers do not pass here, theirs
are bounded by connection.py and requests.py.

On the wire a call with one request is a call with a stream of one. So it is served here as such a stream, whose first
message has a time; to the gatekeeper it is a unary call again, with LATE for a request that was not whole by then, and
ABSENT where none came.

Of calls with a stream of requests those that want no key, reflection's, have the same time for each message. A
trainer's stream is not touched: nothing of it is read before its token was looked at, and then Hello has a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from gateway.interceptors import ABSENT, LATE, OPEN, Handler, too_slow

SECONDS = 60.0  # the largest message, 4 MiB, takes them over a line of half a megabit a second


class InTime(grpc.aio.ServerInterceptor):
    """Gives each unary request its time, and each message of an open stream.

    Args:
        seconds: From the call's headers, or from when the stream waits for a further message, to the last byte.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        #: Its id -> (handler, ours around it): made once, not for every call.
        self._wrapped: dict[int, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the handler with ourselves around it; one that reads a trainer's stream sees to its own time."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or (handler.request_streaming and not handler_call_details.method.startswith(OPEN)):
            return handler  # type: ignore[no-any-return]  # grpc's stubs know no kinds of handlers
        if id(handler) not in self._wrapped:
            self._wrapped[id(handler)] = (handler, self._around(handler))
        return self._wrapped[id(handler)][1]

    def _around(self, handler: Any) -> Handler:  # noqa: ANN401 - grpc has four kinds
        behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

        async def given(requests: Any) -> Any:  # noqa: ANN401 - a message, or an iterator of them
            return self._each(requests) if handler.request_streaming else await self._next(aiter(requests))

        async def answer(requests: Any, context: Any) -> Any:  # noqa: ANN401
            return await behaviour(await given(requests), context)

        async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
            async with aclosing(behaviour(await given(requests), context)) as messages:
                async for message in messages:
                    yield message

        serve: Any = stream if inspect.isasyncgenfunction(behaviour) else answer
        kinds = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
        return kinds[handler.response_streaming](serve, handler.request_deserializer, handler.response_serializer)

    async def _each(self, requests: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        messages = aiter(requests)
        while (message := await self._next(messages)) is not ABSENT:
            if message is LATE:
                raise too_slow()  # through the servicer, which waits here, to the gatekeeper
            yield message

    async def _next(self, messages: Any) -> Any:  # noqa: ANN401
        """The next message; LATE; ABSENT after the last."""
        try:
            async with asyncio.timeout(self._seconds):
                return await anext(messages, ABSENT)
        except TimeoutError:
            return LATE

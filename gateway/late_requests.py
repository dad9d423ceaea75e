"""Ends calls over gRPC whose request does not come: gRPC itself waits for a unary call's one message for as long as its
caller stays, and holds what has come of it. Put before the gatekeeper by the server; the HTTP shim's callers do not
pass here, theirs are bounded by connection.py.

On the wire a call with one request is a call with a stream of one. So it is served here as such a stream, whose first
message has a time; to the gatekeeper it is a unary call again, with LATE for a request that was not whole by then.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from gateway.interceptors import LATE, Handler

SECONDS = 60.0  # the largest message, 4 MiB, takes them over a line of half a megabit a second

_NONE = object()  # the caller has sent no message and said that this was all


class InTime(grpc.aio.ServerInterceptor):
    """Gives each unary request its time.

    Args:
        seconds: From the call's headers to the request's last byte.
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
        """Returns the handler with ourselves around it; one that reads a stream sees to its own time."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]  # grpc's stubs know no kinds of handlers
        if id(handler) not in self._wrapped:
            self._wrapped[id(handler)] = (handler, self._around(handler))
        return self._wrapped[id(handler)][1]

    def _around(self, handler: Any) -> Handler:  # noqa: ANN401 - grpc has four kinds
        behaviour = handler.unary_stream or handler.unary_unary

        async def answer(requests: Any, context: Any) -> Any:  # noqa: ANN401
            return await behaviour(await self._whole(requests, context), context)

        async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
            async with aclosing(behaviour(await self._whole(requests, context), context)) as messages:
                async for message in messages:
                    yield message

        serve: Any = stream if inspect.isasyncgenfunction(behaviour) else answer
        kinds = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
        return kinds[handler.response_streaming](serve, handler.request_deserializer, handler.response_serializer)

    async def _whole(self, requests: Any, context: Any) -> Any:  # noqa: ANN401
        try:
            async with asyncio.timeout(self._seconds):
                request = await anext(aiter(requests), _NONE)
        except TimeoutError:
            return LATE
        if request is _NONE:  # it has left, for the most part, and hears nothing of this
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
        return request

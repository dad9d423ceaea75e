"""Calls the servicers of this process as a grpc.aio channel would, through the same interceptors, but over no socket.

Made by server, which registers each servicer here and with the gRPC server; used by transcoding as its channel. An rpc
over a socket to ourselves costs more than all the rest of an HTTP request. What a servicer sees is the same: a context,
deadlines, cancellation, a task of its own. Messages are handed over as they are: a servicer must not keep the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from grpc.aio import EOF, AbortError, AioRpcError, Metadata

log = structlog.get_logger()

Pairs = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class _Details(grpc.HandlerCallDetails):
    """What an interceptor is told before it has the handler."""

    method: str
    invocation_metadata: Any


class Loopback:
    """A server to register servicers with, and the channel to it."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called by the generated add_XServicer_to_server."""
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Called by the generated code, too; the same handlers, which we have."""

    def unary_unary(self, method: str, **serializers: object) -> Callable[..., UnaryCall]:
        """Returns what calls the rpc."""

        def call(request: object, *, metadata: Pairs, timeout: float | None) -> UnaryCall:
            return UnaryCall(lambda: self._handler(method, metadata), request, _Context(metadata, timeout))

        return call

    def unary_stream(self, method: str, **serializers: object) -> Callable[..., StreamCall]:
        """Returns what calls the rpc."""

        def call(request: object, *, metadata: Pairs, timeout: float | None) -> StreamCall:
            return StreamCall(lambda: self._handler(method, metadata), request, _Context(metadata, timeout))

        return call

    async def _handler(self, method: str, metadata: Pairs) -> Any:  # noqa: ANN401 - grpc has four kinds
        async def registered(details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401
            return self._handlers.get(method)

        found: Callable[[grpc.HandlerCallDetails], Awaitable[Any]] = registered
        for interceptor in reversed(self._interceptors):
            found = _around(interceptor, found)
        return await found(_Details(method, metadata))


def _around(interceptor: grpc.aio.ServerInterceptor, found: Callable[..., Awaitable[Any]]) -> Any:  # noqa: ANN401
    async def intercepted(details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401
        return await interceptor.intercept_service(found, details)

    return intercepted


class UnaryCall:
    """One rpc with one answer; awaited once."""

    def __init__(self, handler: Callable[[], Awaitable[Any]], request: object, context: _Context) -> None:
        self._handler = handler
        self._request = request
        self._context = context

    def __await__(self) -> Generator[Any, None, Any]:
        """Returns the answer, or raises AioRpcError."""
        return self._called().__await__()

    async def initial_metadata(self) -> Metadata:
        """Returns what the servicer sent ahead; once the rpc has ended."""
        return self._context.initial

    async def _called(self) -> Any:  # noqa: ANN401
        # A task of its own: what the servicer sets in context variables is not seen by who called.
        serving = asyncio.ensure_future(self._serve())
        try:
            async with asyncio.timeout(self._context.time_remaining()):
                answer = await serving
        except TimeoutError:
            self._context.is_cancelled = True
            raise _deadline_exceeded() from None
        return answer

    async def _serve(self) -> Any:  # noqa: ANN401
        with _Serving(self._context):
            handler = await self._handler()
            if handler is None or handler.unary_unary is None:
                raise _unimplemented()
            return await handler.unary_unary(self._request, self._context)


class StreamCall:
    """One rpc with a stream of answers."""

    def __init__(self, handler: Callable[[], Awaitable[Any]], request: object, context: _Context) -> None:
        self._handler = handler
        self._request = request
        self._context = context
        #: One message waits at most: who writes goes at the pace of who reads.
        self._messages: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        self._serving: asyncio.Future[None] | None = None
        self._ended = False

    async def read(self) -> Any:  # noqa: ANN401
        """Returns the next message, or EOF; raises AioRpcError where the rpc failed."""
        if self._serving is None:
            self._serving = asyncio.ensure_future(self._serve())
        if not self._ended:
            message = await self._messages.get()
            if message is not EOF:
                return message
            self._ended = True
        await self._serving
        return EOF

    def cancel(self) -> None:
        """Ends the rpc; the servicer sees CancelledError."""
        if self._serving is not None and not self._serving.done():
            self._context.is_cancelled = True
            self._serving.cancel()

    async def _serve(self) -> None:
        try:
            with _Serving(self._context):
                handler = await self._handler()
                if handler is None or handler.unary_stream is None:
                    raise _unimplemented()
                answers: AsyncIterator[Any] = handler.unary_stream(self._request, self._context)
                async with aclosing(answers) as open_answers:  # type: ignore[type-var]  # servicers write generators
                    async for message in open_answers:
                        await self._messages.put(message)
        finally:
            if not self._context.is_cancelled:
                await self._messages.put(EOF)


class _Serving:
    """Around a servicer: what it raises becomes what a channel would raise."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        context = self._context
        context.end()
        if isinstance(error, AioRpcError) or (error is not None and not isinstance(error, Exception)):
            return  # ours; or a cancellation, which goes its way
        if isinstance(error, AbortError):
            raise context.failed() from None
        if error is not None:
            log.error("A servicer raised what nobody translated.", action="rpc.failed", exc_info=error)
            context.set_code(grpc.StatusCode.INTERNAL)
            raise context.failed() from None
        if context.code() is not grpc.StatusCode.OK:
            raise context.failed()


class _Context:
    """What a servicer is given: grpc.aio.ServicerContext, as far as an rpc with one request needs it."""

    def __init__(self, metadata: Pairs, timeout: float | None) -> None:
        self._metadata = tuple(metadata)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: Pairs = ()
        self._callbacks: list[Callable[[Any], None]] = []
        self._is_done = False
        self.initial = Metadata()
        self.is_cancelled = False

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> NoReturn:
        """Ends the rpc with a status."""
        assert code is not grpc.StatusCode.OK, "OK is no reason to abort"
        self._code, self._details = code, details
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the rpc with a status."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Pairs) -> None:
        """Sends metadata ahead of the answer; once."""
        assert not self.initial, "initial metadata were sent before"
        self.initial = Metadata(*initial_metadata)

    def invocation_metadata(self) -> Pairs:
        """What the caller sent."""
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: Pairs) -> None:
        """Sets what follows the answer."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Pairs:
        """What follows the answer."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets what the rpc ends with."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Sets the sentence beside the code."""
        self._details = details

    def code(self) -> grpc.StatusCode:
        """What the rpc ends with, as far as it is known."""
        return self._code

    def details(self) -> str:
        """The sentence beside the code."""
        return self._details

    def peer(self) -> str:
        """Who calls."""
        return "inprocess"

    def peer_identities(self) -> None:
        """None: there is no connection."""

    def peer_identity_key(self) -> None:
        """None: there is no connection."""

    def auth_context(self) -> Mapping[str, Any]:
        """Nothing: there is no connection."""
        return {}

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def set_compression(self, compression: object) -> None:
        """Nothing is compressed."""

    def disable_next_message_compression(self) -> None:
        """Nothing is compressed."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls it once the rpc has ended."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Whether the caller has left."""
        return self.is_cancelled

    def done(self) -> bool:
        """Whether the rpc has ended."""
        return self._is_done

    def end(self) -> None:
        """The servicer has returned."""
        self._is_done = True
        for callback in self._callbacks:
            callback(self)

    def failed(self) -> AioRpcError:
        """What the caller's side raises."""
        return AioRpcError(self._code, self.initial, Metadata(*self._trailing), self._details)


def _unimplemented() -> AioRpcError:
    return AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata(), "Method not found!")


def _deadline_exceeded() -> AioRpcError:
    return AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, Metadata(), Metadata(), "Deadline Exceeded")

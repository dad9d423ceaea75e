"""What happens around every rpc: request id, authentication, rules, errors, metrics. Called by the gRPC server.

One story for all rpcs, told once by `Gatekeeper`: the HTTP shim calls the same server, so it holds for HTTP too.

    request id in -> who calls? -> too often? -> may they? -> is it within the rules? -> servicer -> rich status, metric
                                                                    '-no-> what else is wrong with it? (faults.py)
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from google.api import annotations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message

from gateway import faults, peers, request_ids, rules, status
from gateway.credentials import Credentials, TooManyWrong
from gateway.quotas import Quotas, rate_limited
from gateway.status import Refusal
from store.errors import StoreError
from store.keys import Caller

log = structlog.get_logger()

T = TypeVar("T")

# Set once an rpc, before its servicer runs, in the rpc's own task; read by servicers.
_caller: ContextVar[Caller] = ContextVar("caller")
_trainer_id: ContextVar[str] = ContextVar("trainer_id")
_request_id: ContextVar[str] = ContextVar("request_id")
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)

OPEN = ("/grpc.health.v1.", "/grpc.reflection.")  # load balancers and grpcurl come without a key
_TRAINERS = "/tunesmith.trainer."
_ILLEGIBLE = object()  # stands for a request that could not be read: who sent it is looked at first
LATE = object()  # stands for a request that was not whole in time: see late_requests
ABSENT = object()  # likewise for one that did not come: its caller has ended a call without a message

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Recorder = Callable[[str, str, float], None]
"""(method, code's name, seconds): one rpc has ended."""


def caller() -> Caller:
    """Returns who calls the rpc that is being served. LookupError in a trainer's rpc and outside."""
    return _caller.get()


def trainer_id() -> str:
    """Returns the trainer whose stream is being served. LookupError in a caller's rpc and outside."""
    return _trainer_id.get()


def request_id() -> str:
    """Returns the id of the request that is being served."""
    return _request_id.get()


def traceparent() -> str | None:
    """The caller's trace context, as it came with the call; None where none did."""
    return _traceparent.get()


def chain(
    *,
    authenticate: Callable[[str], Awaitable[Caller | None]],
    authenticate_trainer: Callable[[str], Awaitable[str | None]],
    record: Recorder = lambda method, code, seconds: None,
    quotas: Quotas | None = None,
    cache_seconds: float = 5.0,
) -> list[grpc.aio.ServerInterceptor]:
    """Returns the server's interceptors.

    Args:
        authenticate: Whose key a secret is; None where nobody's.
        authenticate_trainer: Which trainer a join token names; None where none.
        record: Told of every rpc that has ended.
        quotas: What a tenant may ask. None: as much as it likes.
        cache_seconds: How long an answer of the two is remembered: so long does a revoked key live on.
    """
    callers = Credentials(authenticate, cache_seconds)
    trainers = Credentials(authenticate_trainer, cache_seconds)
    return [Gatekeeper(callers, trainers, record, quotas or Quotas())]


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Stands around every rpc."""

    def __init__(
        self, callers: Credentials[Caller], trainers: Credentials[str], record: Recorder, quotas: Quotas
    ) -> None:
        self._callers = callers
        self._trainers = trainers
        self._record = record
        self._quotas = quotas
        #: Its id -> (servicer's handler, ours around it): made once, not for every rpc.
        self._wrapped: dict[int, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the handler with ourselves around it. None, for a method that nobody serves, stays None."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if id(handler) not in self._wrapped:
            self._wrapped[id(handler)] = (handler, self._around(handler, handler_call_details.method))
        return self._wrapped[id(handler)][1]

    def _around(self, handler: Any, method: str) -> Handler:  # noqa: ANN401 - grpc has four kinds
        make = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }
        factory, behaviour = make[handler.request_streaming, handler.response_streaming]
        # A generator's rpc is served by a generator; a coroutine that writes to the context by a coroutine.
        serve = self._stream if inspect.isasyncgenfunction(behaviour) else self._unary
        read = handler.request_deserializer
        if not (handler.request_streaming or method.startswith(OPEN)):
            read = _reader(read)
        return factory(serve(behaviour, method), read, handler.response_serializer)

    def _unary(self, behaviour: Any, method: str) -> Any:  # noqa: ANN401
        async def serve(request: Any, context: Any) -> Any:  # noqa: ANN401
            started, left = time.perf_counter(), False
            told = _is_told(context, method)
            try:
                await self._admit(request, context, method, behaviour)
                return await behaviour(request, context)
            except asyncio.CancelledError:  # never swallowed: grpc leaks an rpc whose cancellation it does not see
                left = True
                raise
            except Exception as error:
                await _refuse(context, error)
            finally:
                self._finish(method, _code(context, left), time.perf_counter() - started, told)

        return serve

    def _stream(self, behaviour: Any, method: str) -> Any:  # noqa: ANN401
        async def serve(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
            started, left = time.perf_counter(), False
            told = _is_told(context, method)
            try:
                await self._admit(request, context, method, behaviour)
                found = _caller.get(None)  # none in a trainer's rpc
                with nullcontext() if found is None else self._quotas.stream(found):
                    async with aclosing(behaviour(request, context)) as messages:
                        async for message in messages:
                            yield message
            except (asyncio.CancelledError, GeneratorExit):
                left = True
                raise
            except Exception as error:
                await _refuse(context, error)
            finally:
                self._finish(method, _code(context, left), time.perf_counter() - started, told)

        return serve

    def _finish(self, method: str, code: str, seconds: float, told: bool) -> None:
        self._record(method, code, seconds)
        if told:
            sentence = f"{method} was answered {code} after {seconds * 1000:.1f} ms."
            log.info(sentence, action="rpc.answered", code=code)

    async def _admit(self, request: Any, context: Any, method: str, behaviour: Any) -> None:  # noqa: ANN401
        """Names the request, and refuses callers without a right and messages against the rules.

        The context variables are set here, in the task that runs the servicer: it sees them.
        """
        metadata = dict(context.invocation_metadata() or ())
        name = request_ids.accepted(metadata.get(request_ids.HEADER))
        _request_id.set(name)
        # Trailing: initial metadata can be sent only once, and belong to the servicer.
        context.set_trailing_metadata(((request_ids.HEADER, name),))
        trace = request_ids.traceparent(metadata.get(request_ids.TRACE_HEADER))
        _traceparent.set(trace)
        structlog.contextvars.bind_contextvars(request_id=name, rpc=method, **request_ids.trace_fields(trace))
        if request is LATE:
            raise too_slow()
        is_open = method.startswith(OPEN)
        if method.startswith(_TRAINERS):
            await self._admit_trainer(metadata, context)
        elif not is_open:
            await self._admit_caller(metadata, context, method)
        if request is ABSENT:
            raise _malformed("The call has no message.")
        if request is _ILLEGIBLE:
            raise _malformed("The request's bytes are no message of this rpc.")
        if isinstance(request, Message) and not is_open:
            judge_only = status.JUDGE_ONLY in metadata
            broken = rules.violations(request)
            if broken or judge_only:
                raise status.invalid([*broken, *await faults.found_besides(request, behaviour, broken)])

    async def _admit_caller(self, metadata: dict[str, Any], context: Any, method: str) -> None:  # noqa: ANN401
        found = await _owner(self._callers, metadata, context)
        if found is None:
            raise _unauthenticated("KEY_INVALID", "This API key is not valid.")
        # First of all: the log is to tell also which key was refused.
        asker = {"tenant_id": found.tenant_id, "key_id": found.key_id}
        structlog.contextvars.bind_contextvars(**asker)
        if (told := request_ids.asker.get()) is not None:
            told.update(asker)
        self._quotas.charge(found)
        if not _allows(found.scopes, scope_of(method)):
            message = f"This API key lacks the scope {scope_of(method)}."
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", message)
        _caller.set(found)

    async def _admit_trainer(self, metadata: dict[str, Any], context: Any) -> None:  # noqa: ANN401
        """A join token, or over mutual TLS the certificate's common name, names the trainer."""
        names = context.auth_context().get("x509_common_name", ())
        if "authorization" not in metadata and names:
            found: str | None = names[0].decode()
        else:
            found = await _owner(self._trainers, metadata, context)
        if not found:
            raise _unauthenticated("TOKEN_INVALID", "This join token is not valid.")
        _trainer_id.set(found)
        structlog.contextvars.bind_contextvars(trainer_id=found)


def _reader(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Reads a request. gRPC itself would call bytes that cannot be read UNKNOWN, in words of its own."""
    if deserialize is None:
        return None

    def read(content: bytes) -> Any:  # noqa: ANN401 - a message of any rpc
        try:
            return deserialize(content)
        except DecodeError:
            return _ILLEGIBLE

    return read


@cache
def scope_of(method: str) -> str:
    """Returns the scope that an rpc wants: `tune:read` for TuneService/GetTune, whose HTTP rule is a GET."""
    service, _, name = method.lstrip("/").partition("/")
    noun = service.rpartition(".")[2].removesuffix("Service").lower()
    try:
        described = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return f"{noun}:write"
    reads = described.GetOptions().Extensions[annotations_pb2.http].WhichOneof("pattern") == "get"
    return f"{noun}:{'read' if reads else 'write'}"


def _allows(scopes: frozenset[str], wanted: str) -> bool:
    return "*" in scopes or wanted in scopes or f"{wanted.partition(':')[0]}:*" in scopes


async def _owner(credentials: Credentials[T], metadata: dict[str, Any], context: Any) -> T | None:  # noqa: ANN401
    """Whom the call's secret belongs to."""
    try:
        return await credentials.owner(_secret(metadata), peers.network_of(context.peer(), metadata))
    except TooManyWrong as exc:
        raise rate_limited("Too many wrong keys came from your address.", exc.seconds) from exc


def _secret(metadata: dict[str, Any]) -> str:
    scheme, _, secret = str(metadata.get("authorization", "")).partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise _unauthenticated("KEY_MISSING", "The header `Authorization: Bearer <key>` is missing.")
    return secret


def too_slow() -> Refusal:
    """A request's message, or one of a stream, was not whole in time."""
    text = "The request's message was not whole in time."
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW", text, http_status=408)


def _malformed(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", message)


def _unauthenticated(reason: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, reason, message)


async def _refuse(context: Any, error: Exception) -> NoReturn:  # noqa: ANN401
    """Ends the rpc with the rich status that the error stands for."""
    if isinstance(error, grpc.aio.AbortError) or context.done():
        raise error  # the servicer has ended it itself, or the caller is gone
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, StoreError):
        refusal = status.refusal(error)
    else:
        refusal = _fault_of_ours()
    name = _request_id.get("")
    # Our own shim takes any number of violations; a native client's metadata has a bound.
    limit_bytes = None if peers.is_shim(context.peer()) else status.NATIVE_BYTES
    try:
        details = status.rich(refusal, name, limit_bytes=limit_bytes)
    except Exception:  # gRPC would call it UNKNOWN, in Python's words
        refusal = _fault_of_ours()
        details = status.rich(refusal, name)
    trailing = ((status.STATUS_KEY, details.SerializeToString()), (request_ids.HEADER, name))
    await context.abort(refusal.code, details.message, trailing_metadata=trailing)
    raise AssertionError("abort raises")


def _fault_of_ours() -> Refusal:
    """What a caller learns of the exception that is being handled. The log learns all."""
    log.exception("An rpc failed for a fault of ours.", action="rpc.failed")
    return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "Internal error.")


def _is_told(context: Any, method: str) -> bool:  # noqa: ANN401
    """Whether the log tells the rpc's end. Asked as it begins: gRPC crashes where an ended one is asked for its peer.

    HTTP logs its own requests, and health is asked every few seconds by whoever watches us.
    """
    return not (method.startswith(OPEN) or peers.is_shim(context.peer()))


def _code(context: Any, left: bool) -> str:  # noqa: ANN401
    """Returns the code's name that an rpc ends with; for one that its caller has left, CANCELLED."""
    if left:
        return grpc.StatusCode.CANCELLED.name
    code = context.code()
    return (code if isinstance(code, grpc.StatusCode) else status.code_of(code or 0)).name

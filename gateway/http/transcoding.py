"""HTTP requests -> rpcs -> HTTP answers, by the bindings alone: no line knows tunes.

Called by app, which mounts the routes; calls the gRPC server over its channel, so that authentication, validation and
errors are those of gRPC. Types and unknown values are judged here, rules there.

    path, query, headers, body --read--> request message --channel--> interceptors, servicer
    status, headers, JSON      <-write-- answer or rich status  <--------------'
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from urllib.parse import parse_qsl

import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from gateway.http import errors, json, locations
from gateway.http.bindings import Binding, Parameter, bindings
from gateway.http.events import Streams
from gateway.http.exchange import Answer, chunk_of, exchange_of
from gateway.http.loopback import Loopback
from gateway.http.reading import Fault, Loc, field_reader, reader, text_reader
from gateway.http.templates import canonical
from gateway.http.writing import field_writer, writer
from gateway.status import JUDGE_ONLY, Refusal, received

Channel = grpc.aio.Channel | Loopback

# A body from here on is read in a thread: everybody else's requests go on meanwhile.
LARGE = 256 * 1024  # bytes

# Request headers that are passed on, and the answer's metadata that are not.
_PASSED_ON = (b"authorization", b"traceparent", b"tracestate")
_KEPT_BACK = ("grpc-", "content-", "x-request-id", "user-agent", "date", "server", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    body_bytes: int = 4 * 1024 * 1024
    """Of a JSON body: gRPC's own default for a message."""
    upload_bytes: int = 20 * 1024**3
    """Of an upload to the local object store."""
    depth: int = 64
    """Of nested JSON."""
    call_seconds: float = 300.0
    """Until a unary rpc is given up."""
    keepalive_seconds: float = 15.0
    """Between two signs of life on a quiet stream; below what proxies wait."""


def routes(channel: Channel, services: Sequence[ServiceDescriptor], limits: Limits | None = None) -> list[BaseRoute]:
    """Returns a route for each path of the services' rules, the more particular first."""
    found = bindings(services)
    limits = limits or Limits()
    grouped = groupby(sorted(found, key=_pattern), key=_pattern)
    same_path = [[_endpoint(channel, binding, limits) for binding in group] for _, group in grouped]
    made = [TranscodedRoute(endpoints) for endpoints in same_path]
    made.sort(key=lambda route: route.rank)
    return list[BaseRoute](made)


def _pattern(binding: Binding) -> str:
    return binding.template.regex.pattern


class TranscodedRoute(BaseRoute):
    """One path, with an endpoint a verb."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        first = endpoints[0].binding.template
        self.path = first.text
        self.rank = first.rank
        self._regex = first.regex
        self._endpoints = {endpoint.binding.verb: endpoint for endpoint in endpoints}
        assert len(self._endpoints) == len(endpoints), f"{self.path}: two rpcs with the same verb"
        get = self._endpoints.get("GET")
        if get is not None and not get.binding.method.server_streaming:
            self._endpoints.setdefault("HEAD", get)
        self._allowed = ", ".join(sorted(self._endpoints))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Matches the path as it was sent: an encoded slash belongs to an id and separates nothing."""
        if scope["type"] != "http":
            return Match.NONE, {}
        match = self._regex.fullmatch(canonical(scope["raw_path"]))
        if match is None:
            return Match.NONE, {}
        known = scope["method"] in self._endpoints
        return Match.FULL if known else Match.PARTIAL, {"path_match": match}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        exchange = exchange_of(scope)
        exchange.route = self.path
        try:
            endpoint = self._endpoints.get(scope["method"])
            if endpoint is None:
                raise errors.wrong_method(self._allowed)
            answer = await endpoint.answer(scope, receive, send)
        except Refusal as refusal:
            headers = [("allow", self._allowed)] if refusal.http_status == 405 else []
            answer = errors.refused(refusal, exchange.request_id, headers)
        if answer is not None:
            await answer.send(scope, send)


@dataclass
class Request:
    """A request as far as it could be read."""

    message: Message
    metadata: list[tuple[str, str]]
    faults: list[Fault] = field(default_factory=list)
    given: dict[str, Loc] = field(default_factory=dict)
    """Field path -> place, of what stood beside the body."""
    body: Any = None
    """The body's JSON values."""


class Endpoint:
    """One binding, with everything made ready that does not depend on the request."""

    def __init__(self, binding: Binding, limits: Limits) -> None:
        method = binding.method
        self.binding = binding
        self._limits = limits
        self._new = GetMessageClass(method.input_type)
        self._read_body = _body_reader(binding)
        self._query = {p.name: _ParameterReader(p, "query") for p in binding.query}
        self._headers = {p.name.lower().encode(): _ParameterReader(p, "header") for p in binding.headers}
        self._variables = [_ParameterReader(p, "path") for p in binding.variables]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Returns the answer, or None where it was sent."""
        raise NotImplementedError

    async def read(self, scope: Scope, receive: Receive) -> Request:
        """Reads body, query, headers and path into a message.

        Raises:
            Refusal: The body is too large or no JSON by its type.
            Disconnected: The caller went away.
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request = Request(self._new(), _metadata(headers, exchange_of(scope).request_id))
        if self.binding.body:
            text = await self._body(headers, receive)
            if len(text) < LARGE:
                self._read_text(text, request)
            else:
                await asyncio.to_thread(self._read_text, text, request)
        if scope["query_string"]:
            self._read_query(scope["query_string"], request)
        for name, header in self._headers.items():
            if headers.get(name):
                header.read(headers[name].decode("latin-1"), request)
        self._read_path(scope, request)
        return request

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise errors.too_large(most)
        body, more = await chunk_of(receive)
        while more:
            chunk, more = await chunk_of(receive)
            body += chunk
            if len(body) > most:
                raise errors.too_large(most)
        if len(body) > most:
            raise errors.too_large(most)
        if body:
            _refuse_other_types(headers)
        return body

    def _read_text(self, text: bytes, request: Request) -> None:
        """No body at all is an empty object: a POST without fields needs none."""
        try:
            request.body = json.loads(text, self._limits.depth) if text else {}
        except json.MalformedError as malformed:
            request.faults.append(malformed.fault)
            return
        self._read_body(request.message, request.body, ("body",), request.faults)

    def _read_query(self, query: bytes, request: Request) -> None:
        # Bytes that are not UTF-8 become lone surrogates, which the parameter's reader refuses at its place.
        texts: dict[str, list[str]] = {}
        text_of_query = query.decode(errors="surrogateescape")
        for name, text in parse_qsl(text_of_query, keep_blank_values=True, errors="surrogateescape"):
            texts.setdefault(name, []).append(text)
        for name, found in texts.items():
            if name in self._query:
                self._query[name].read_all(found, request)

    def _read_path(self, scope: Scope, request: Request) -> None:
        values = self.binding.template.values(scope["path_match"])
        for variable, text in zip(self._variables, values, strict=True):
            variable.read(text, request)

    def refused(self, request: Request, error: grpc.aio.AioRpcError, request_id: str) -> Answer:
        """Returns the answer to an rpc that was refused."""
        refusal = received(error.code(), error.details(), error.trailing_metadata())
        if refusal.http_status != 422:
            return errors.refused(refusal, request_id)
        faults = list(request.faults)
        for violation in refusal.violations:
            fault = locations.fault(self.binding, violation, request.given, request.body)
            if not any(_says_all(unread, fault.loc) for unread in request.faults):
                faults.append(fault)
        return errors.invalid(faults) if faults else errors.refused(refusal, request_id)

    def timeout_and_metadata(self, request: Request) -> dict[str, Any]:
        """Returns how the rpc is called. One that could not be read whole is judged, and never carried out."""
        judged = [(JUDGE_ONLY, "1")] if request.faults else []
        return {"metadata": (*request.metadata, *judged), "timeout": self._limits.call_seconds}


class UnaryEndpoint(Endpoint):
    """A binding whose rpc has one answer."""

    def __init__(self, channel: Channel, binding: Binding, limits: Limits) -> None:
        super().__init__(binding, limits)
        output = binding.method.output_type
        named = binding.response_body
        self._write = field_writer(output.fields_by_name[named]) if named else writer(output)
        self._call = channel.unary_unary(binding.rpc, **_serializers(binding.method))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Answer:
        """Calls the rpc and returns its answer as JSON."""
        request = await self.read(scope, receive)
        call = self._call(request.message, **self.timeout_and_metadata(request))
        try:
            message = await call
        except grpc.aio.AioRpcError as error:
            return self.refused(request, error, exchange_of(scope).request_id)
        assert not request.faults, "the interceptors carry out no request with faults"
        headers = _headers(await call.initial_metadata())
        return Answer(self.binding.success_status, json.dumps(self._write(message)), headers)


class StreamEndpoint(Endpoint):
    """A binding whose rpc answers with a stream."""

    def __init__(self, channel: Channel, binding: Binding, limits: Limits) -> None:
        super().__init__(binding, limits)
        self._streams = Streams(binding.method.output_type, limits.keepalive_seconds)
        self._call = channel.unary_stream(binding.rpc, **_serializers(binding.method))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Calls the rpc and sends its messages; returns an answer where it was refused at once."""
        request = await self.read(scope, receive)
        options = self.timeout_and_metadata(request) | {"timeout": None}  # a stream lasts as long as a tune
        try:
            await self._streams.relay(self._call(request.message, **options), scope, receive, send)
        except grpc.aio.AioRpcError as error:
            return self.refused(request, error, exchange_of(scope).request_id)
        return None


class _ParameterReader:
    """Reads one query parameter, header or path variable."""

    def __init__(self, parameter: Parameter, place: str) -> None:
        self._above = [step.name for step in parameter.path[:-1]]
        self._field = parameter.field
        self.dotted = parameter.dotted
        self.loc: Loc = (place, parameter.name)
        self._from_path = place == "path"
        self._is_message = parameter.field.message_type is not None
        self._read = text_reader(parameter.field)

    def read_all(self, texts: list[str], request: Request) -> None:
        """Reads what a query has under the parameter's name."""
        if self._field.is_repeated:
            request.given[self.dotted] = self.loc
            self._read(self._container(request.message), texts, self.loc, request.faults)
        elif len(texts) > 1:
            request.faults.append(Fault(self.loc, "Parameter occurs more than once", "value_error"))
        else:
            self.read(texts[0], request)

    def read(self, text: str, request: Request) -> None:
        """Reads one text."""
        container, name = self._container(request.message), self._field.name
        body_said = getattr(container, name) if self._field.has_presence and container.HasField(name) else None
        request.given[self.dotted] = self.loc
        loc = self.loc[:-1] if self._is_message else self.loc  # a message's reader adds its own name
        self._read(container, text, loc, request.faults)
        if body_said is not None and body_said != getattr(container, name) and not self._from_path:
            request.faults.append(Fault(self.loc, f"Contradicts '{self.dotted}' in the body", "value_error"))

    def _container(self, message: Any) -> Any:  # noqa: ANN401
        for name in self._above:
            message = getattr(message, name)
        return message


def _endpoint(channel: Channel, binding: Binding, limits: Limits) -> Endpoint:
    kind = StreamEndpoint if binding.method.server_streaming else UnaryEndpoint
    return kind(channel, binding, limits)


def _serializers(method: MethodDescriptor) -> Any:  # noqa: ANN401 - keyword arguments of two kinds of channel
    return {
        "request_serializer": GetMessageClass(method.input_type).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }


def _body_reader(binding: Binding) -> Any:  # noqa: ANN401 - a reading.Reader
    request: Descriptor = binding.method.input_type
    if binding.body in ("", "*"):
        return reader(request, frozenset(v.dotted for v in binding.variables))
    read = field_reader(request.fields_by_name[binding.body])

    def read_field(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        found: list[Fault] = []
        if value is not None:
            read(message, value, loc, found)
        # The field is the body: its name stands nowhere in it.
        faults += [Fault((*loc, *fault.loc[len(loc) + 1 :]), fault.msg, fault.type) for fault in found]

    return read_field


def _refuse_other_types(headers: Mapping[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").decode("latin-1")
    essence, _, parameters = media_type.lower().partition(";")
    essence = essence.strip()
    if (
        essence
        and essence != "application/json"
        and not (essence.startswith("application/") and essence.endswith("+json"))
    ):
        raise errors.wrong_media_type(media_type)
    if "charset=" in parameters and "utf-8" not in parameters and "utf8" not in parameters:
        raise errors.wrong_media_type(media_type)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() != "identity":
        raise errors.wrong_media_type(f"encoded as {encoding}")


def _metadata(headers: Mapping[bytes, bytes], request_id: str) -> list[tuple[str, str]]:
    metadata = [("x-request-id", request_id)]
    for name in _PASSED_ON:
        value = headers.get(name, b"").decode("latin-1")
        if (
            value and value.isascii() and value.isprintable()
        ):  # gRPC takes no other; a key that is not is no key of ours
            metadata.append((name.decode(), value))
    return metadata


def _headers(metadata: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - grpc.aio.Metadata
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if isinstance(value, str) and not key.startswith(_KEPT_BACK) and not key.endswith("-bin")
    )


def _says_all(unread: Fault, loc: Loc) -> bool:
    """Tells whether a rule on the place says nothing new, as the place, or a part of it, or its whole, was not read."""
    place = ("body",) if unread.type == "json_invalid" else unread.loc
    shorter = min(len(place), len(loc))
    return place[:shorter] == loc[:shorter]

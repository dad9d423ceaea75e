"""HTTP requests -> rpcs -> HTTP answers, by the bindings alone: no line knows tunes.

Called by app, which mounts the routes; calls the gRPC server over its channel, so that authentication, validation and
errors are those of gRPC. Types and unknown values are judged here, rules there.

    path, query, headers, body --read--> request message --channel--> interceptors, servicer
    status, headers, JSON      <-write-- answer or rich status  <--------------'
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from gateway.http import errors, json, locations
from gateway.http.bindings import Binding, bindings
from gateway.http.events import Streams
from gateway.http.exchange import Answer, request_id_of
from gateway.http.fault import MOST_FAULTS, Fault, Loc
from gateway.http.loopback import Loopback
from gateway.http.requests import Limits, Request, RequestReader
from gateway.http.templates import canonical
from gateway.http.writing import field_writer, writer
from gateway.status import JUDGE_ONLY, Refusal, received

Channel = grpc.aio.Channel | Loopback

# Metadata of an answer that are no headers: gRPC's own, and what HTTP says itself.
_KEPT_BACK = ("grpc-", "content-", "x-request-id", "user-agent", "date", "server", "transfer-encoding", "connection")


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
        try:
            endpoint = self._endpoints.get(scope["method"])
            if endpoint is None:
                raise errors.wrong_method(self._allowed)
            answer = await endpoint.answer(scope, receive, send)
        except Refusal as refusal:
            # After a 408 hung up: the rest of that body would hold the connection for as long as it likes.
            beside = {405: [("allow", self._allowed)], 408: [("connection", "close")]}
            headers = beside.get(refusal.http_status, [])
            answer = errors.refused(refusal, request_id_of(scope), headers)
        if answer is not None:
            await answer.send(scope, send)


class Endpoint:
    """One binding, with everything made ready that does not depend on the request."""

    def __init__(self, binding: Binding, limits: Limits) -> None:
        self.binding = binding
        self.read = RequestReader(binding, limits).read
        self._call_seconds = limits.call_seconds

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Returns the answer, or None where it was sent."""
        raise NotImplementedError

    def refused(self, request: Request, error: grpc.aio.AioRpcError, request_id: str) -> Answer:
        """Returns the answer to an rpc that was refused."""
        refusal = received(error.code(), error.details(), error.trailing_metadata())
        if refusal.http_status != 422:
            return errors.refused(refusal, request_id)
        faults = list(request.faults)
        unread = {_whole(fault) for fault in faults if not fault.is_read}
        for violation in refusal.violations:
            if len(faults) >= MOST_FAULTS:
                break
            fault = locations.fault(self.binding, violation, request.given, request.body)
            # Of what was not read, or stands in what was not, a rule says nothing new.
            if not any(fault.loc[:depth] in unread for depth in range(1, len(fault.loc) + 1)):
                faults.append(fault)
        return errors.invalid(faults) if faults else errors.refused(refusal, request_id)

    def call_options(self, request: Request) -> dict[str, Any]:
        """Returns how the rpc is called. One that could not be read whole is judged, and never carried out."""
        judged = [(JUDGE_ONLY, "1")] if request.faults else []
        return {"metadata": (*request.metadata, *judged), "timeout": self._call_seconds}


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
        call = self._call(request.message, **self.call_options(request))
        try:
            message = await call
        except grpc.aio.AioRpcError as error:
            return self.refused(request, error, request_id_of(scope))
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
        options = self.call_options(request) | {"timeout": None}  # a stream lasts as long as a tune
        try:
            await self._streams.relay(self._call(request.message, **options), scope, receive, send)
        except grpc.aio.AioRpcError as error:
            return self.refused(request, error, request_id_of(scope))
        return None


def _endpoint(channel: Channel, binding: Binding, limits: Limits) -> Endpoint:
    kind = StreamEndpoint if binding.method.server_streaming else UnaryEndpoint
    return kind(channel, binding, limits)


def _serializers(method: MethodDescriptor) -> Any:  # noqa: ANN401 - keyword arguments of two kinds of channel
    return {
        "request_serializer": GetMessageClass(method.input_type).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }


def _headers(metadata: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - grpc.aio.Metadata
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if isinstance(value, str) and not key.startswith(_KEPT_BACK) and not key.endswith("-bin")
    )


def _whole(unread: Fault) -> Loc:
    """The place that could not be read. Of malformed JSON that is the body, whose fault says how far it was read."""
    return ("body",) if unread.type == "json_invalid" else unread.loc

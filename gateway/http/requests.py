"""HTTP requests -> request messages: body, query, headers and path, with every type error and its place.

Called by transcoding; knows no rpc's name and calls none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.types import Receive, Scope

from gateway.http import errors, json
from gateway.http.bindings import Binding, Parameter
from gateway.http.exchange import chunk_of, headers_of, request_id_of
from gateway.http.fault import Fault, Loc
from gateway.http.reading import field_reader, reader, text_reader
from gateway.peers import HEADER as PEER_HEADER
from gateway.request_ids import HEADER

# A body from here on is read in a thread: everybody else's requests go on meanwhile.
LARGE = 32 * 1024  # bytes; some hundred files with captions, which take milliseconds

# Request headers that an rpc sees as metadata.
_PASSED_ON = (b"authorization", b"traceparent", b"tracestate")

_JSON = re.compile(r"|application/json|application/[^/]+\+json")  # no type at all is taken for JSON


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    body_bytes: int = 4 * 1024 * 1024
    """Of a JSON body: gRPC's own default for a message."""
    body_seconds: float = 60.0
    """For all of it, as late_requests.py has it over gRPC. connection.py asks for so little a second that 4 MiB could
    take over an hour, and nobody has looked at the key by then."""
    depth: int = 64
    """Of nested JSON."""
    call_seconds: float = 300.0
    """Until a unary rpc is given up."""
    keepalive_seconds: float = 15.0
    """Between two signs of life on a quiet stream; below what proxies wait."""


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


class RequestReader:
    """Reads the requests of one binding; what does not depend on the request is made ready once."""

    def __init__(self, binding: Binding, limits: Limits) -> None:
        self._template = binding.template
        self._has_body = bool(binding.body)
        self._limits = limits
        self._new = GetMessageClass(binding.method.input_type)
        self._read_body = _body_reader(binding)
        self._query = {p.name: _ParameterReader(p, "query") for p in binding.query}
        self._headers = {p.name.lower().encode(): _ParameterReader(p, "header") for p in binding.headers}
        self._variables = [_ParameterReader(p, "path") for p in binding.variables]

    async def read(self, scope: Scope, receive: Receive) -> Request:
        """Reads body, query, headers and path into a message.

        Raises:
            Refusal: The body is too large, too slow or no JSON by its type.
            Disconnected: The caller went away.
        """
        headers = headers_of(scope)
        request = Request(self._new(), _metadata(headers, scope))
        if self._has_body:
            text = await self._body(headers, receive)
            if len(text) < LARGE:
                self._read_text(text, request)
            else:
                await asyncio.to_thread(self._read_text, text, request)
        if scope["query_string"]:
            self._read_query(scope["query_string"], request)
        if self._headers:
            self._read_headers(scope, request)
        self._read_path(scope, request)
        return request

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:18]) > most:
            raise errors.too_large(most)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    chunk, more = await chunk_of(receive)
                    body += chunk
                    if len(body) > most:
                        raise errors.too_large(most)
        except TimeoutError:
            raise errors.too_slow(f"The body took longer than {self._limits.body_seconds:g} s.") from None
        if body:
            _refuse_other_types(headers)
        return bytes(body)

    def _read_text(self, text: bytes, request: Request) -> None:
        """No body at all is an empty object: a POST without fields needs none."""
        try:
            request.body = json.loads(text, self._limits.depth) if text else {}
        except json.MalformedError as malformed:
            request.faults.append(malformed.fault)
            if not malformed.fault.is_read:
                return
            request.body = malformed.values
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

    def _read_headers(self, scope: Scope, request: Request) -> None:
        """An empty one counts as given where it is text: who sends an empty key takes a retry for safe."""
        for name, header in self._headers.items():
            texts = list(dict.fromkeys(text.decode("latin-1") for key, text in scope["headers"] if key == name))
            if len(texts) > 1:
                request.faults.append(Fault(header.loc, "Header occurs more than once", "value_error"))
            elif texts and (texts[0] or header.is_text):
                header.read(texts[0], request)

    def _read_path(self, scope: Scope, request: Request) -> None:
        values = self._template.values(scope["path_match"])
        for variable, text in zip(self._variables, values, strict=True):
            variable.read(text, request)


class _ParameterReader:
    """Reads one query parameter, header or path variable."""

    def __init__(self, parameter: Parameter, place: str) -> None:
        self._above = [step.name for step in parameter.path[:-1]]
        self._field = parameter.field
        self.dotted = parameter.dotted
        self.loc: Loc = (place, parameter.name)
        self._from_path = place == "path"
        self._is_message = parameter.field.message_type is not None
        self.is_text = parameter.field.type == FieldDescriptor.TYPE_STRING
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
        # Of query and header the header counts: an EventSource asks again for the URL that it was given, with its
        # `?after_id=`, and says in Last-Event-ID how far it has come.
        in_body = self.dotted not in request.given and self._field.has_presence and container.HasField(name)
        body_said = getattr(container, name) if in_body else None
        request.given[self.dotted] = self.loc
        loc = self.loc[:-1] if self._is_message else self.loc  # a message's reader adds its own name
        self._read(container, text, loc, request.faults)
        if body_said is not None and body_said != getattr(container, name) and not self._from_path:
            sentence = f"Contradicts '{self.dotted}' in the body"
            request.faults.append(Fault(self.loc, sentence, "value_error", is_read=True))

    def _container(self, message: Any) -> Any:  # noqa: ANN401
        for name in self._above:
            message = getattr(message, name)
        return message


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
        faults += [replace(fault, loc=(*loc, *fault.loc[len(loc) + 1 :])) for fault in found]

    return read_field


def _refuse_other_types(headers: Mapping[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").decode("latin-1")
    essence, _, parameters = media_type.lower().partition(";")
    if not _JSON.fullmatch(essence.strip()):
        raise errors.wrong_media_type(media_type)
    if "charset=" in parameters and "utf-8" not in parameters and "utf8" not in parameters:
        raise errors.wrong_media_type(media_type)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() != "identity":
        raise errors.wrong_media_type(f"encoded as {encoding}")


def _metadata(headers: Mapping[bytes, bytes], scope: Scope) -> list[tuple[str, str]]:
    host = scope["client"][0] if scope.get("client") else ""
    metadata = [(HEADER, request_id_of(scope)), (PEER_HEADER, host if host.isascii() and host.isprintable() else "")]
    for name in _PASSED_ON:
        value = headers.get(name, b"").decode("latin-1")
        # gRPC takes no other text; a key that is not printable is no key of ours.
        if value and value.isascii() and value.isprintable():
            metadata.append((name.decode(), value))
    return metadata

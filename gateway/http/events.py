"""Server-streaming rpcs over HTTP: server-sent events, or one JSON object a line.

Called by transcoding; knows no message by name. An event's id is the message's field `id`, where it has one; its name
is the tag of the message's tagged union, where it has one.

    GET, Accept: text/event-stream or */*        id: 7 / event: verdict / data: {...}
    GET, Accept: application/x-ndjson            {...}\n

Errors before the first message are plain HTTP errors. A stream that ends well ends with `event: end`; one that breaks
ends with `event: error`, or just ends: go on from the last id with Last-Event-ID.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from starlette.types import Receive, Scope, Send

from gateway.http import errors
from gateway.http.exchange import Answer, gone, request_id_of, start
from gateway.http.json import dumps
from gateway.http.profile import union_of
from gateway.http.writing import Writer, writer
from gateway.status import received

# A refusal comes within milliseconds; a quiet stream's caller should see the headers soon.
GRACE = 1.0  # seconds

_HEADERS = (("cache-control", "no-store"), ("x-accel-buffering", "no"))  # the latter: nginx passes events on at once


class EventStream:
    """Frames of text/event-stream."""

    media_type = "text/event-stream; charset=utf-8"
    opening = b"retry: 2000\n\n"  # milliseconds until a broken stream is asked for again
    keepalive = b": still here\n\n"
    closing = b"event: end\ndata: {}\n\n"

    def __init__(self, descriptor: Descriptor) -> None:
        self._write = writer(descriptor)
        self._id = _id_of(descriptor)
        self._name = _name_of(descriptor)

    def frame(self, message: Message) -> bytes:
        """Returns one event."""
        name = self._name(message)
        lines = [b"id: %d" % getattr(message, "id")] if self._id else []  # noqa: B009 - Message has no `id` for mypy
        if name:
            lines.append(b"event: " + name.encode())
        lines.append(b"data: " + dumps(self._write(message)))
        return b"\n".join(lines) + b"\n\n"

    def failure(self, body: bytes) -> bytes:
        """Returns the event that a broken stream ends with."""
        return b"event: error\ndata: " + body + b"\n\n"


class Lines:
    """Frames of application/x-ndjson."""

    media_type = "application/x-ndjson"
    opening = b""
    keepalive = b"\n"  # readers of NDJSON skip empty lines
    closing = b""

    def __init__(self, descriptor: Descriptor) -> None:
        self._write: Writer = writer(descriptor)

    def frame(self, message: Message) -> bytes:
        """Returns one line."""
        return dumps(self._write(message)) + b"\n"

    def failure(self, body: bytes) -> bytes:
        """Returns the line that a broken stream ends with."""
        return b'{"error":' + body + b"}\n"


Frames = EventStream | Lines


class Streams:
    """How one streaming rpc is answered; made once a route."""

    def __init__(self, descriptor: Descriptor, keepalive_seconds: float) -> None:
        self._events = EventStream(descriptor)
        self._lines = Lines(descriptor)
        self._keepalive_seconds = keepalive_seconds

    async def relay(self, call: Any, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ANN401
        """Sends the rpc's messages as they come, until it ends or the caller goes.

        Raises:
            grpc.aio.AioRpcError: The rpc was refused before its first message: nothing was sent.
        """
        headers = dict(scope["headers"])
        frames: Frames = self._lines if wants_lines(headers.get(b"accept", b"").decode("latin-1")) else self._events
        reading = asyncio.ensure_future(call.read())
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({reading, leaving}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            resumed = b"last-event-id" in headers and frames is self._events
            if resumed and reading.done() and reading.result() is grpc.aio.EOF:
                # Nothing is left: 204 is what tells an EventSource to ask no more.
                await Answer(204, b"").send(scope, send)
                return
            if reading.done():
                reading.result()  # raises the refusal
            await start(send, 200, (("content-type", frames.media_type), *_HEADERS))
            await _send(send, frames.opening)
            last = await self._pump(call, frames, reading, leaving, send, request_id_of(scope))
            await send({"type": "http.response.body", "body": last})
        finally:
            call.cancel()
            reading.cancel()
            leaving.cancel()
            await asyncio.gather(reading, leaving, return_exceptions=True)

    async def _pump(
        self,
        call: Any,  # noqa: ANN401
        frames: Frames,
        reading: asyncio.Future[Any],
        leaving: asyncio.Future[None],
        send: Send,
        request_id: str,
    ) -> bytes:
        """Returns what the stream ends with."""
        try:
            while True:
                await asyncio.wait(
                    {reading, leaving}, timeout=self._keepalive_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if leaving.done():
                    return b""
                if not reading.done():
                    await _send(send, frames.keepalive)
                    continue
                message = reading.result()
                if message is grpc.aio.EOF:
                    return frames.closing
                await _send(send, frames.frame(message))
                reading = asyncio.ensure_future(call.read())
        except grpc.aio.AioRpcError as error:
            refusal = received(error.code(), error.details(), error.trailing_metadata())
            return frames.failure(errors.body(refusal, request_id))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _send(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def wants_lines(accept: str) -> bool:
    """Tells whether NDJSON is preferred to server-sent events, which are the default."""
    quality = {"lines": 0.0, "events": 0.0}
    for entry in accept.lower().split(","):
        media_type, _, parameters = entry.strip().partition(";")
        kind = (
            "lines" if media_type.strip() in _LINES else "events" if media_type.strip() == "text/event-stream" else ""
        )
        if kind:
            quality[kind] = max(quality[kind], _quality(parameters))
    return quality["lines"] > quality["events"]


_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/json")


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        key, _, value = parameter.strip().partition("=")
        if key == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _id_of(descriptor: Descriptor) -> bool:
    """Only a number: a text might hold a line break."""
    field = descriptor.fields_by_name.get("id")
    return field is not None and field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32)


def _name_of(descriptor: Descriptor) -> Callable[[Message], str | None]:
    for field in descriptor.fields:
        union = None if field.message_type is None else union_of(field.message_type)
        if union is not None and not field.is_repeated:
            name, oneof = field.name, union.oneof.name
            tags = {arm.name: tag for tag, arm in union.arms.items()}
            return lambda message: tags.get(getattr(message, name).WhichOneof(oneof) or "")
    return lambda message: None

"""One HTTP connection, with bounds on what a caller may take of it by being slow or endless. Built by uvicorn, which
has the protocol; knows no route.

    headers                HEAD_SECONDS from the connection or a further request's first byte on; HEAD_BYTES
    body                   BODY_RATE, looked at every BODY_SECONDS; how long it may be, and JSON take, is in requests.py
    answer                 a caller that reads none of it for WRITE_SECONDS is dropped
    between two requests   uvicorn's own five seconds
    all connections        as many as admission.py lets in, of all and from one place

Trainers come over gRPC and take nothing of this.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import grpc
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import request_ids
from gateway.http import errors
from gateway.http.admission import Admission, Seat
from gateway.http.exchange import KEY, headers_of
from gateway.status import Refusal

log = structlog.get_logger()

#: uvicorn warns of each stranger who speaks no HTTP, beside our line, and advises the operator to install a library for
#: one who asks for a WebSocket. Only its errors are told.
UVICORN = logging.getLogger("uvicorn.error.connection")
UVICORN.setLevel(logging.ERROR)

STATUS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Unavailable"}


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, bounded."""

    HEAD_SECONDS: ClassVar[float] = 15.0
    HEAD_BYTES: ClassVar[int] = 64 * 1024
    """Of the path and all headers, trailers too."""
    BODY_SECONDS: ClassVar[float] = 30.0
    BODY_RATE: ClassVar[float] = 1024.0
    """Bytes a second: less than any line that somebody would upload a picture over."""
    WRITE_SECONDS: ClassVar[float] = 60.0

    is_made = False
    """Whether it has been opened; over TLS, hands shaken."""

    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is awaited
    _body_timer: asyncio.TimerHandle | None = None  # runs while a body is awaited
    _write_timer: asyncio.TimerHandle | None = None  # runs while the caller reads too slowly
    _in_message = False  # from a request's first byte to its last
    _in_head = True  # the headers of the request under way, or of the next one, have not ended
    _head_bytes = 0  # of the request under way
    _raw_bytes = 0  # that came while its head was not whole
    _has_ended = False  # a request, within the packet that is being read
    _body_bytes = 0  # since the body was last looked at
    _was_paused = False  # at that time, for the app was slower than the caller
    _refused = False

    def __init__(self, *args: Any, admission: Admission, seat: Seat | None = None, **keywords: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **keywords)
        self.logger = UVICORN
        self._admission = admission
        self._seat = seat  # over TLS it was given one before the handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Opened."""
        self.is_made = True
        super().connection_made(transport)
        if self._seat is None:
            self._seat = self._admission.admit(self.client[0] if self.client else "")
        if self._seat is None:
            busy = Refusal(
                grpc.StatusCode.UNAVAILABLE, "TOO_MANY_CONNECTIONS", "Too many connections.", retry_after_seconds=1
            )
            self._refuse(busy)
            return
        self._head_timer = self.loop.call_later(self.HEAD_SECONDS, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed."""
        for timer in (self._head_timer, self._body_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._seat is not None:
            self._admission.leave(self._seat)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of one request, or of several, or of none: empty lines before a request are let pass."""
        if self._refused:
            return
        if self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.HEAD_SECONDS, self._head_late)
        self._has_ended = False
        super().data_received(data)
        # What the parser holds of a name or a value without end it has not told yet. A packet in which a body has ended
        # is not counted: it is no larger than the socket's buffer.
        if not (self._in_message and self._in_head):
            self._raw_bytes = 0
        elif not self._has_ended:
            self._raw_bytes += len(data)
        if self._raw_bytes > self.HEAD_BYTES or self._head_bytes > self.HEAD_BYTES:
            self._refuse(_head_too_large(self.HEAD_BYTES))

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_message, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """A piece of its path."""
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or, after the body, a trailer, of which nobody wants to know."""
        self._head_bytes += len(name) + len(value)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        if self._refused:
            return  # the next one of the same packet
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._head_bytes > self.HEAD_BYTES:
            self._refuse(_head_too_large(self.HEAD_BYTES))
            return
        super().on_headers_complete()
        self._look_at_body_later()

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        if not self._refused:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        self._in_message, self._in_head, self._has_ended = False, True, True
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if not self._refused:
            super().on_message_complete()

    def eof_received(self) -> None:
        """The caller sends no more; it may still read."""
        answered = self.cycle is not None and self.cycle.response_complete
        if self._in_message and not self._in_head and not answered:
            sentence = "The body ended before it was whole, by its Content-Length or its chunks."
            self._refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "LENGTH_MISMATCH", sentence, http_status=400))
        super().eof_received()

    def pause_writing(self) -> None:
        """The caller does not read what it is sent."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        sentence = "This is no request of HTTP/1.1."
        self._refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_HTTP", sentence, http_status=400))

    def _head_late(self) -> None:
        self._head_timer = None
        if not self._in_message:
            self.transport.close()  # it has asked for nothing
            return
        self._refuse(errors.too_slow(f"The headers took longer than {self.HEAD_SECONDS:g} s."))

    def _look_at_body_later(self) -> None:
        self._body_bytes, self._was_paused = 0, self.flow.read_paused
        self._body_timer = self.loop.call_later(self.BODY_SECONDS, self._look_at_body)

    def _look_at_body(self) -> None:
        least = self.BODY_RATE * self.BODY_SECONDS
        excused = self._was_paused or self.flow.read_paused
        if self._body_bytes < least and not excused:
            self._refuse(errors.too_slow(f"The body came at less than {self.BODY_RATE:g} bytes a second."))
        else:
            self._look_at_body_later()

    def _request_id(self) -> str:
        """Of the request that is being served, which may bring its own; a new one where its headers were not whole."""
        if self.cycle is None or self.cycle.response_complete:
            return request_ids.accepted(None)
        scope: Any = self.cycle.scope
        given = headers_of(scope).get(request_ids.HEADER.encode())
        return str(scope.get(KEY) or request_ids.accepted(given))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers for the app, unless that has begun to, and hangs up."""
        if self._refused:
            return
        self._refused = True
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        # The app may have answered before the body had come: a second answer would be taken for the next request's.
        answered = self.cycle is not None and self.cycle.response_complete and self._in_message and not self._in_head
        if not (begun or answered or self.pipeline):
            name = self._request_id()
            sentence = f"What came over a connection was answered {refusal.http_status}: {refusal.message}"
            told = {"request_id": name, "reason": refusal.reason, "status": refusal.http_status}
            log.info(sentence, action="http.refused", **told)
            answer = errors.refused(refusal, name)
            headers = [
                (request_ids.HEADER, name),
                ("content-type", answer.media_type),
                ("content-length", str(len(answer.body))),
                ("connection", "close"),
                *answer.headers,
            ]
            head = [b"HTTP/1.1 %d %s" % (answer.status, STATUS[answer.status])]
            head += [f"{name}: {value}".encode("latin-1") for name, value in headers]
            self.transport.write(b"\r\n".join([*head, b"", answer.body]))
        self.transport.close()


def _head_too_large(most: int) -> Refusal:
    sentence = f"Path and headers may have {most} bytes."
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "HEADERS_TOO_LARGE", sentence, http_status=431)

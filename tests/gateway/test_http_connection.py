"""Connections that are slow, endless or no HTTP at all, by raw sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import structlog

from gateway.http.admission import Admission
from gateway.http.connection import Connection
from tests.servers.uvicorn import served


class Hasty(Connection):
    """One that does not wait for long."""

    HEAD_SECONDS = 0.3
    HEAD_BYTES = 10_000
    BODY_SECONDS = 0.5
    BODY_RATE = 20.0
    WRITE_SECONDS = 0.3


@dataclass
class App:
    """Reads the whole body, then answers with its length; `/endless` answers for ever, `/early` before the body."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a caller has gone before its time."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append(scope)
        length, more = 0, scope["path"] != "/early"
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left.set()
                return
            length, more = length + len(event["body"]), event["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            leaving = asyncio.ensure_future(receive())
            while not leaving.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            self.left.set()
        await send({"type": "http.response.body", "body": b"%d" % length})


@dataclass
class Server:
    app: App
    host: str
    port: int

    @asynccontextmanager
    async def line(self, *sent: bytes, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
        """A connection on which that was sent."""
        reader, writer = await asyncio.open_connection(self.host, self.port, **options)
        try:
            for each in sent:
                writer.write(each)
                await writer.drain()
            yield reader, writer
        finally:
            writer.close()

    async def answer(self, *sent: bytes) -> bytes:
        """All that comes until the server hangs up."""
        async with self.line(*sent) as (reader, _):
            return bytes(await asyncio.wait_for(reader.read(), 20))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = App()
    async with served(app, http=partial(Hasty, admission=Admission())) as (host, port):
        yield Server(app, host, port)


def assert_refused(answer: bytes, status: int, reason: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    said = json.loads(body)
    assert set(said) == {"detail", "code", "reason", "request_id"}
    assert said["reason"] == reason
    assert f"x-request-id: {said['request_id']}".encode() in head.split(b"\r\n")


HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", HEAD + b"X: "])
async def test_headers_that_never_end_are_given_up(server: Server, sent: bytes) -> None:
    assert_refused(await server.answer(sent), 408, "REQUEST_TOO_SLOW")
    assert not server.app.requests


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
async def test_who_asks_for_nothing_is_let_go_without_a_word(server: Server, sent: bytes) -> None:
    assert await server.answer(sent) == b""


async def test_a_kept_connection_is_not_held_open_by_empty_lines(server: Server) -> None:
    async with server.line(b"GET / HTTP/1.1\r\n\r\n") as (reader, writer):
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"\r\n")  # ends the five seconds that uvicorn waits for a further request

        assert await asyncio.wait_for(reader.read(), 20) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 20_000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"X: " + b"a" * 20_000,
        HEAD + b"X" * 20_000,
        HEAD + b"".join(b"X%d: a\r\n" % number for number in range(2000)),
        HEAD + b"".join(b"X%d: a\r\n" % number for number in range(2000)) + b"\r\nGET /b HTTP/1.1\r\n\r\n",
    ],
    ids=["path", "whole path", "value", "name", "many", "many and another"],
)
async def test_headers_too_large_are_431_and_reach_nobody(server: Server, sent: bytes) -> None:
    assert_refused(await server.answer(sent), 431, "HEADERS_TOO_LARGE")
    assert not server.app.requests


@pytest.mark.parametrize(
    "opening",
    [b"Content-Length: 100\r\n\r\n", b"Content-Length: 100\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5;"],
)
async def test_a_body_that_does_not_come_is_given_up_and_its_reader_told(server: Server, opening: bytes) -> None:
    assert_refused(await server.answer(HEAD + opening), 408, "REQUEST_TOO_SLOW")
    await server.app.left.wait()


@pytest.mark.parametrize(
    "sent",
    [b"Content-Length: 100\r\n\r\nhalf", b"Content-Length: 1\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf"],
)
async def test_who_ends_a_body_before_it_is_whole_and_still_listens_is_told(server: Server, sent: bytes) -> None:
    async with server.line(HEAD + sent) as (reader, writer):
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)

    assert_refused(answer, 400, "LENGTH_MISMATCH")
    await server.app.left.wait()


async def test_who_ends_a_body_that_is_answered_already_is_told_nothing_twice(server: Server) -> None:
    async with server.line(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf") as (reader, writer):
        answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
        writer.write_eof()
        rest = await asyncio.wait_for(reader.read(), 20)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert rest == b""


async def test_a_body_that_is_answered_already_and_comes_no_more_is_hung_up_on(server: Server) -> None:
    async with server.line(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf") as (reader, _):
        answer = await asyncio.wait_for(reader.read(), 20)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"0\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1, "a second answer would be the next request's"


async def test_a_body_that_comes_slowly_and_steadily_is_taken(server: Server) -> None:
    async with server.line(HEAD + b"Content-Length: 3000\r\n\r\n") as (reader, writer):
        for _ in range(30):
            writer.write(b"x" * 100)
            await asyncio.sleep(0.05)  # in all three times as long as a body may lie still
        answer = await reader.readuntil(b"0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\n3000\r\n" in answer


async def test_trailers_without_end_are_given_up_and_seen_by_nobody(server: Server) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    trailers = b"".join(b"T%d: a\r\n" % number for number in range(2000))

    answer = await server.answer(chunked + trailers)

    assert_refused(answer, 431, "HEADERS_TOO_LARGE")
    assert all(name == b"host" or name == b"transfer-encoding" for name, _ in server.app.requests[0]["headers"])


async def test_a_caller_that_reads_nothing_is_dropped(server: Server) -> None:
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect((server.host, server.port))
    small.setblocking(False)
    with small:
        await asyncio.get_running_loop().sock_sendall(small, b"GET /endless HTTP/1.1\r\n\r\n")

        await asyncio.wait_for(server.app.left.wait(), 20)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n"])
async def test_what_is_no_http_is_400(server: Server, sent: bytes) -> None:
    assert_refused(await server.answer(sent), 400, "MALFORMED_HTTP")


async def test_a_refused_connection_is_logged_once_by_the_id_that_its_answer_bears(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await server.answer(b"\x16\x03\x01\r\n\r\n")

    [line] = [each for each in logs if each["action"] == "http.refused"]
    assert line["request_id"] == json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"]
    assert (line["reason"], line["status"]) == ("MALFORMED_HTTP", 400)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_websocket_that_nobody_offers_is_an_ordinary_request_and_no_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await server.answer(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_garbage_behind_an_answer_under_way_does_not_get_into_it(server: Server) -> None:
    async with server.line(b"GET /endless HTTP/1.1\r\n\r\n") as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00 garbage\r\n\r\n")
        rest = await asyncio.wait_for(reader.read(), 20)

    assert b"HTTP/1.1" not in rest


async def test_a_connection_serves_one_request_after_the_other(server: Server) -> None:
    body = b"Content-Length: 3\r\n\r\nabc"
    async with server.line(HEAD + body + HEAD + body) as (reader, writer):
        answers = [await reader.readuntil(b"0\r\n\r\n") for _ in range(2)]
        writer.write(HEAD + body)
        answers.append(await reader.readuntil(b"0\r\n\r\n"))

    assert all(answer.startswith(b"HTTP/1.1 200 OK") and b"\r\n3\r\n" in answer for answer in answers)
    assert len(server.app.requests) == 3


async def test_a_body_in_the_same_packet_is_no_header(server: Server) -> None:
    body = b"Content-Length: 60000\r\n\r\n" + b"x" * 60_000
    async with server.line(HEAD + body + HEAD + body) as (reader, _):
        answers = [await reader.readuntil(b"0\r\n\r\n") for _ in range(2)]

    assert all(answer.startswith(b"HTTP/1.1 200 OK") and b"\r\n60000\r\n" in answer for answer in answers)


async def test_connections_beyond_half_of_the_open_files_are_503_until_one_has_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (2, 2))

    async with server.line(HEAD + b"Content-Length: 9\r\n\r\n"):
        refused = await server.answer()
    await server.app.left.wait()
    answer = await server.answer(HEAD + b"Connection: close\r\n\r\n")

    assert_refused(refused, 503, "TOO_MANY_CONNECTIONS")
    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_a_peer_takes_no_connection_that_it_would_not_leave_to_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (4, 4))
    request = HEAD + b"Content-Length: 0\r\n\r\n"

    async with server.line(request) as (first, _):
        await first.readuntil(b"\r\n0\r\n")
        assert_refused(await server.answer(), 503, "TOO_MANY_CONNECTIONS")
        async with server.line(request, local_addr=("127.0.0.2", 0)) as (other, _):
            answer = await other.readuntil(b"\r\n0\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_a_body_that_ends_too_early_is_answered_by_the_requests_own_id(server: Server) -> None:
    head = HEAD.replace(b"Host: a\r\n", b"Host: a\r\nX-Request-Id: mine-123\r\n")

    async with server.line(head + b"Content-Length: 100\r\n\r\nhalf") as (reader, writer):
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)

    assert_refused(answer, 400, "LENGTH_MISMATCH")
    assert b"mine-123" in answer

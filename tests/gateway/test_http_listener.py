"""TLS connections are counted from their acceptance, also those whose handshake never ends; by raw sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest
import uvicorn
import uvloop

from gateway.http.admission import Admission, Seat
from gateway.http.listener import Listener
from tests.servers.certificates import Authority

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Patient(Listener):
    """One that gives hands as much time as a test takes."""

    HANDSHAKE_SECONDS = 60.0


class Hasty(Listener):
    """One that does not wait for long."""

    HANDSHAKE_SECONDS = 0.2


class Watched(Admission):
    """Tells of each seat that it is given back."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1")
        self.left: asyncio.Queue[Seat] = asyncio.Queue()

    def leave(self, seat: Seat) -> None:
        super().leave(seat)
        self.left.put_nowait(seat)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in the gateway's own loop, whose TLS is none of asyncio's."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(**fixtures))

    return run


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def shown(authority: Authority) -> ssl.SSLContext:
    pair = authority.sign("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


@asynccontextmanager
async def listening(tls: ssl.SSLContext, admission: Admission, kind: type[Listener] = Patient) -> AsyncIterator[int]:
    """Serves over TLS; gives the port."""
    config = uvicorn.Config(app, lifespan="off", ws="none", access_log=False, log_config=None)
    bound = socket.create_server(("127.0.0.1", 0))
    listener = kind(config, admission, tls)
    serving = asyncio.create_task(listener.serve(sockets=[bound]))
    try:
        yield bound.getsockname()[1]
    finally:
        listener.should_exit = True
        await serving


@asynccontextmanager
async def line(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Any, Any]]:
    """A connection; closed at the end."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=tls), 20)
    try:
        yield reader, writer
    finally:
        writer.close()


async def rest(reader: Any) -> bytes:
    """All that comes until the server hangs up."""
    try:
        return bytes(await asyncio.wait_for(reader.read(), 20))
    except ConnectionResetError:
        return b""


def seats(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (2 * most, 2 * most))


@on_uvloop
async def test_request_is_answered_and_its_seat_given_back(shown: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    admission = Watched()
    async with listening(shown, admission) as port:
        async with line(port, trusting) as (reader, writer):
            writer.write(GET)
            answer = await reader.readuntil(b"ok")
        seat = await asyncio.wait_for(admission.left.get(), 20)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert seat.network == "127.0.0.1"
    assert admission.left.empty()


@on_uvloop
async def test_who_connects_and_says_nothing_takes_a_seat_and_is_let_go(
    shown: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats(monkeypatch, 1)
    admission = Watched()
    async with listening(shown, admission) as port:
        async with line(port):
            async with line(port) as (refused, _):
                assert await rest(refused) == b""
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with line(port, trusting):
                    pass
        await asyncio.wait_for(admission.left.get(), 20)
        async with line(port, trusting) as (reader, writer):
            writer.write(GET)
            answer = await reader.readuntil(b"ok")

    assert answer.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["silent", "half a hello"])
@on_uvloop
async def test_handshake_that_takes_too_long_is_broken_off(sent: bytes, shown: ssl.SSLContext) -> None:
    admission = Watched()
    async with listening(shown, admission, Hasty) as port, line(port) as (reader, writer):
        writer.write(sent)

        assert await rest(reader) == b""
        await asyncio.wait_for(admission.left.get(), 20)


@on_uvloop
async def test_what_is_no_tls_gives_its_seat_back(shown: ssl.SSLContext) -> None:
    admission = Watched()
    async with listening(shown, admission) as port, line(port) as (reader, writer):
        writer.write(GET)

        assert b"HTTP" not in await rest(reader)
        await asyncio.wait_for(admission.left.get(), 20)


@on_uvloop
async def test_end_waits_for_no_handshake(shown: ssl.SSLContext) -> None:
    admission = Watched()
    async with asyncio.timeout(20), listening(shown, admission) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with line(port) as (_, other):
            other.write(GET)
            await admission.left.get()  # so the one before it is accepted too

    assert await rest(reader) == b""
    writer.close()

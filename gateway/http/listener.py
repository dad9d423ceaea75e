"""uvicorn's server, but for two things: it leaves signals to `__main__`, and counts TLS connections from their first
moment. Built by the server; knows no route.

A loop's own server says nothing of a TLS connection until hands are shaken: who connects and is silent would count
nowhere. So with TLS they are accepted here:

    accept --> a seat, or it is closed without a word --> handshake, HANDSHAKE_SECONDS --> Connection

Without TLS the loop's own server will do: there each connection counts itself at once (connection.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, cast

import structlog
import uvicorn

from gateway.http.admission import Admission, Seat
from gateway.http.connection import Connection

ACCEPT_PAUSE = 1.0  # seconds, where no connection can be accepted: no file is left

log = structlog.get_logger(__name__)


class Listener(uvicorn.Server):
    """Serves on sockets that are bound already.

    Args:
        config: Without what is given here: TLS and the protocol.
        admission: Who counts connections.
        tls: What is shown. None: no TLS.
        protocol: Of one connection.
    """

    HANDSHAKE_SECONDS: ClassVar[float] = 15.0

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        tls: ssl.SSLContext | None = None,
        protocol: type[Connection] = Connection,
    ) -> None:
        config.load()
        config.http_protocol_class = cast("Any", partial(protocol, admission=admission))
        super().__init__(config)
        self._admission = admission
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections from now on."""
        assert sockets is not None, "an address that cannot be bound is told before anything is served"
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])  # all of it but the sockets
        servers = [
            _TlsServer(each, self._tls, self._admission, self._build, self.HANDSHAKE_SECONDS) for each in sockets
        ]
        self.servers = cast("list[asyncio.Server]", servers)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    def _build(self, seat: Seat) -> Connection:
        build = cast("Callable[..., Connection]", self.config.http_protocol_class)
        state = self.server_state
        return build(config=self.config, server_state=state, app_state=self.lifespan.state, seat=seat)


class _TlsServer:
    """One listening socket. Of an asyncio.Server it has what uvicorn calls."""

    def __init__(
        self,
        listening: socket.socket,
        tls: ssl.SSLContext,
        admission: Admission,
        build: Callable[[Seat], Connection],
        handshake_seconds: float,
    ) -> None:
        self._tls = tls
        self._admission = admission
        self._build = build
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        listening.setblocking(False)
        #: Who accepts, and the handshakes under way.
        self._tasks = {self._loop.create_task(self._accept(listening))}

    def close(self) -> None:
        """Accepts nothing more; who has not shaken hands yet has asked for nothing."""
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Until none of it is left."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, address = await self._loop.sock_accept(listening)
            except OSError as exc:
                log.warning(f"No connection can be accepted: {exc}", action="http.accept_failed")
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            seat = self._admission.admit(address[0])
            if seat is None:
                accepted.close()
            else:
                task = self._loop.create_task(self._shake_hands(accepted, seat))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # while more of them come than this takes, nothing above has waited

    async def _shake_hands(self, accepted: socket.socket, seat: Seat) -> None:
        connection = self._build(seat)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=self._tls, ssl_handshake_timeout=self._handshake_seconds
            )
        except OSError as exc:  # an SSLError is one; it speaks no TLS, or has gone, or its time is over
            log.debug(f"No TLS came about: {exc!r}", action="http.handshake_failed")
        finally:
            if not connection.is_made:  # else it gives its seat back itself
                self._admission.leave(seat)

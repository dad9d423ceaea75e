"""A TCP proxy that does what networks do: delays, drops one way, resets, refuses. Used by chaos; knows no protocol.

client ──> [Proxy: one loopback port] ──> the first upstream that accepts

It runs on a thread and a loop of its own, so that its callers may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Self, TypeVar

Answer = TypeVar("Answer")

CHUNK = 64 * 1024  # bytes
#: Closing sends RST, as a host does that knows of no such connection.
RESET = struct.pack("ii", 1, 0)


class Way(Enum):
    """Which bytes."""

    UP = "up"
    """Of the client."""
    DOWN = "down"
    """Of the upstream."""


@dataclass(eq=False)
class _Connection:
    """One client's connection and its upstream's."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    holed: bool = False
    """Bytes of it were dropped: it can only be reset."""


class Proxy:
    """One port.

    Args:
        upstreams: Ports of this host, tried in order for each connection.
    """

    def __init__(self, upstreams: Sequence[int]) -> None:
        self._upstreams = upstreams
        self._delay = 0.0
        self._dropping: set[Way] = set()
        self._refusing = False
        self._connections: set[_Connection] = set()  # all of it belongs to the loop
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """Where it listens, HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def delay(self, seconds: float) -> None:
        """Each piece of bytes comes so much later, both ways."""
        self._do(self._change(delay=seconds))

    def drop(self, way: Way) -> None:
        """Bytes of this way vanish, and nobody is told: half-open."""
        self._do(self._change(drop=way))

    def refuse(self) -> None:
        """Resets what there is, and whoever comes."""
        self._do(self._change(refuse=True))

    def reset(self) -> None:
        """Resets what there is; who comes again is served."""
        self._do(self._reset(only_holed=False))

    def heal(self) -> None:
        """Serves as if nothing had been; resets the connections that have lost bytes."""
        self._do(self._change())

    def _do(self, work: Coroutine[object, object, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _change(self, *, delay: float = 0.0, drop: Way | None = None, refuse: bool = False) -> None:
        self._delay, self._dropping, self._refusing = delay, {drop} if drop else set(), refuse
        await self._reset(only_holed=not refuse)

    async def _reset(self, *, only_holed: bool) -> None:
        for connection in list(self._connections):
            if connection.holed or not only_holed:
                for writer in connection.writers:
                    _abort(writer)

    async def _close(self) -> None:
        self._server.close()
        await self._reset(only_holed=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = _Connection([writer])
        self._connections.add(connection)
        try:
            if not self._refusing and (upstream := await self._connect()) is not None:
                connection.writers.append(upstream[1])
                await self._relay(connection, (reader, writer), upstream)
        except asyncio.CancelledError:
            return  # the proxy ends; asyncio's server would log it
        finally:
            for each in connection.writers:
                _abort(each)
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._upstreams:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _relay(
        self,
        connection: _Connection,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pour(connection, Way.UP, client[0], upstream[1]))
                ways.create_task(self._pour(connection, Way.DOWN, upstream[0], client[1]))
        except* OSError:
            pass  # one of the two has gone: the other will be told

    async def _pour(
        self, connection: _Connection, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        while piece := await source.read(CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            if way in self._dropping:
                connection.holed = True
            if connection.holed:
                continue
            target.write(piece)
            await target.drain()
        target.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()

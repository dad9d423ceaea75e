"""Wake-ups between gateways, by PostgreSQL's LISTEN and NOTIFY. Opened by the database; knows no tables.

One connection of its own, outside the pool, in autocommit: a NOTIFY inside a transaction takes a lock on all of the
server's commits (4,542 inserts a second without, 508 with, at 16 clients). A session-bound thing, it must not go
through a transaction pooler such as PgBouncer.

    publish() -> delivered here at once
              -> pending ids -> one task: NOTIFY them together, else wait until there are some or the server has sent
              some
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Iterator

import psycopg
from psycopg import pq

from store.wakeups.base import BACKLOG, Topic, Wakeups

CHANNEL = "tunesmith"
PAYLOAD_LIMIT = 7_000  # bytes; the server's own is 8,000
RECONNECT = 1.0  # seconds between two attempts to connect
PARTING = 1.0  # seconds that the last ids may take to be told
PROBE = 10.0  # seconds of silence after which the connection is tried: a half-open one hears nothing for ever

log = logging.getLogger(__name__)


class PostgresWakeups(Wakeups):
    """Tells this process at once and the others by the server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._origin = uuid.uuid4().hex[:12]  # what we have told is delivered here already
        #: Written by publish(), emptied by the task.
        self._pending: dict[tuple[Topic, str], None] = {}
        self._woken = asyncio.Event()
        self._told = asyncio.Event()  # set while nothing is pending nor under way; cleared by publish()
        self._told.set()
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def publish(self, topic: Topic, id: str) -> None:
        """Tells the id to all subscribers, here and elsewhere."""
        self.deliver(topic, (id,))
        self._pending[topic, id] = None
        if len(self._pending) > BACKLOG:  # the server is away: they count as lost
            del self._pending[next(iter(self._pending))]
        self._told.clear()
        self._woken.set()

    async def start(self) -> None:
        """Begins to listen; returns once it does, or after a failed attempt: it goes on trying."""
        self._task = asyncio.create_task(self._run(), name="wake-ups")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECONNECT):
                await self._listening.wait()

    async def close(self) -> None:
        """Tells what is pending, for a command's only word is its last one; then ends the task and its connection."""
        if self._task is not None:
            if self._listening.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PARTING):
                        await self._told.wait()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, connect_timeout=5, tcp_user_timeout=20_000
                ) as connection:
                    await self._serve(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("Wake-ups are away, polling goes on beneath: %s", error, extra={"action": "wakeups.away"})
            self._listening.clear()
            await asyncio.sleep(RECONNECT)

    async def _serve(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        connection.add_notify_handler(lambda notify: self._heard(notify.payload))
        await connection.execute(f"LISTEN {CHANNEL}")
        self._listening.set()
        while True:
            for payload in self._payloads():
                # What others have sent meanwhile arrives at the handler with this statement's answer.
                await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
            if not self._pending:
                self._told.set()
            if not await self._stirred(connection):
                await connection.execute("SELECT 1")

    def _payloads(self) -> Iterator[str]:
        """Takes all that is pending, in as few payloads as hold it."""
        self._woken.clear()
        taken, self._pending = list(self._pending), {}
        told: list[tuple[Topic, str]] = []
        size = 0
        for topic, id in taken:
            size += len(topic) + 3 * len(id) + 10  # at most: JSON may escape
            if size > PAYLOAD_LIMIT:
                yield json.dumps([self._origin, told])
                told, size = [], 0
            told.append((topic, id))
        if told:
            yield json.dumps([self._origin, told])

    async def _stirred(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> bool:
        """Waits for something to tell or something to hear, and hears it. False: silence for PROBE seconds."""
        loop = asyncio.get_running_loop()
        # The driver waits on this socket itself while it executes, so ours is taken off before and after.
        loop.add_reader(connection.fileno(), self._woken.set)
        try:
            async with asyncio.timeout(PROBE):
                await self._woken.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(connection.fileno())
        connection.pgconn.consume_input()
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection broke off")
        while notify := connection.pgconn.notifies():
            self._heard(notify.extra.decode())
        return True

    def _heard(self, payload: str) -> None:
        try:
            origin, told = json.loads(payload)
            if origin != self._origin:
                for topic, id in told:
                    self.deliver(topic, (id,))
        except (ValueError, TypeError) as error:
            log.warning("A wake-up cannot be read: %s", error, extra={"action": "wakeups.unreadable"})

"""PostgreSQL's driver, which waits neither for ever nor for a caller that has gone. Used by database.py for its
connections; knows no SQL.

A server that hangs, or whose host is suspended, keeps its connections and answers nothing. The driver would wait for
its answer without end. And where the caller gives up, as a heartbeat does, the driver would ask the server to end the
statement and wait ten seconds for that: for so long nobody else has the connection, and heartbeats have but one. So a
connection whose answer is not waited for is closed; SQLAlchemy throws it away then in any case. The server finds out
by itself (client_connection_check_interval) and takes back what was not committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from sqlalchemy.ext.asyncio import AsyncConnection

ANSWER_LIMIT = 35.0  # seconds; above the server's own limit for a statement, which is the better one to meet
BEAT_LIMIT = 5.0  # seconds; a beat and a fence touch few rows, and behind one that is stuck all leases would wait

Result = TypeVar("Result")


class PostgresConnection(psycopg.AsyncConnection[Any]):
    """As its base, but for how it waits."""

    #: Seconds for which the server may be silent. None: without end.
    patience: float | None = ANSWER_LIMIT

    async def wait(
        self,
        gen: PQGen[Result],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # as the base has it
    ) -> Result:
        """See the base. Every answer of the server is waited for here.

        Raises:
            psycopg.OperationalError: None has come; the connection is closed.
        """
        try:
            async with asyncio.timeout(self.patience):
                return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except TimeoutError:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has not answered for {self.patience:g} seconds") from None
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class BeatConnection(PostgresConnection):
    """The one of heartbeats and fences."""

    patience = BEAT_LIMIT


@asynccontextmanager
async def patient(connection: AsyncConnection) -> AsyncIterator[None]:
    """Waits for the server without end, as migrations of large tables want it."""
    ours = cast("PostgresConnection", (await connection.get_raw_connection()).driver_connection)
    ours.patience = None
    try:
        yield
    finally:
        del ours.patience  # back to that of all

"""SQLite's driver with fewer changes of threads: a connection has a thread of its own, and the way there and back takes
longer than most statements. Opened by the database, used by SQLAlchemy; knows no tables.

    aiosqlite   make a cursor, execute, read, close it, roll back what has been committed   a change for each
    here        execute and read to the end                                                 one change in all
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self

import aiosqlite


@dataclass(frozen=True)
class Outcome:
    """What a statement left, its cursor being closed."""

    rows: list[Any] = field(default_factory=list)
    """All of them."""
    description: Any = None
    """Of the columns, as DB-API has it; None where the statement gives no rows."""
    rowcount: int = -1
    """Rows that were changed."""
    lastrowid: int | None = None
    """Of the last insert."""


class SqliteConnection(aiosqlite.Connection):
    """A connection and its thread. It begins nothing by itself: that takes a statement.

    May be stopped twice. A transaction that is cancelled twice does that to its connection; aiosqlite 0.22 then waits
    for ever for an answer of a thread that has ended.
    """

    def __init__(self, path: str, busy_limit: float) -> None:
        super().__init__(lambda: sqlite3.connect(path, busy_limit, isolation_level=None), iter_chunk_size=64)
        self._thread.daemon = True  # a connection that nobody could close must not keep the process
        self._stopped: asyncio.Future[Any] | None = None
        self._asked = 0  # statements; written by the event loop
        self._answered = 0  # of them; written by the thread

    def cursor(self) -> Cursor:  # type: ignore[override]  # it needs no thread to be made
        """A cursor for one statement."""
        return Cursor(self)

    async def complete(self, statement: str, parameters: Sequence[Any], *, many: bool) -> Outcome:
        """Executes the statement, or with `many` once for each of the parameters, and reads its rows."""
        self._asked += 1
        outcome: Outcome = await self._execute(self._complete, statement, parameters, many)  # type: ignore[no-untyped-call]
        return outcome

    async def rollback(self) -> None:
        """Rolls back. The pool wants it of every connection that it gets back, and mostly there is nothing left to: a
        statement of a cancelled caller that is still under way may yet begin something.
        """
        if self._asked != self._answered or self.in_transaction:
            await super().rollback()

    def stop(self) -> asyncio.Future[Any] | None:
        """Ends the thread, once. Returns what is done then; None outside of an event loop."""
        if self._stopped is None:
            self._stopped = super().stop()
        return self._stopped

    def _complete(self, statement: str, parameters: Sequence[Any], many: bool) -> Outcome:
        """In the thread."""
        try:
            with closing(self._conn.cursor()) as cursor:
                (cursor.executemany if many else cursor.execute)(statement, parameters)
                rows = cursor.fetchall()  # first: what is changed is counted as it is read
                return Outcome(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
        finally:
            self._answered += 1


class Cursor:
    """What SQLAlchemy asks of an asynchronous cursor."""

    arraysize = 1

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._outcome = Outcome()

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:  # noqa: ANN401  # as DB-API has it
        """The columns'; None where there are no rows."""
        return self._outcome.description

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""
        return self._outcome.rowcount

    @property
    def lastrowid(self) -> int | None:
        """Of the last insert."""
        return self._outcome.lastrowid

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Executes it and reads its rows."""
        self._outcome = await self._connection.complete(statement, parameters, many=False)

    async def executemany(self, statement: str, parameters: Sequence[Any]) -> None:
        """Executes it once for each of the parameters."""
        self._outcome = await self._connection.complete(statement, parameters, many=True)

    async def fetchall(self) -> list[Any]:
        """The rows, which have been read."""
        return self._outcome.rows

    async def close(self) -> None:
        """It has been closed."""

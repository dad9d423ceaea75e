"""Opens a database from a URL and hands out transactions. Called by gateway/server, which opens and closes it, and by every
module of the store, which takes it first; knows no tables.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection

from store.wakeups.base import Topic, Wakeups


class Transaction:
    """A write that is under way."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        #: Published after the commit, never inside it.
        self.wakeups: list[tuple[Topic, str]] = []

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Executes one statement, or one with many rows of parameters."""
        return await self.connection.execute(statement, parameters)

    def wake(self, topic: Topic, id: str) -> None:
        """Publishes the id once this transaction is committed."""
        self.wakeups.append((topic, id))


class Database:
    """An open database. Make it with `await Database.open(url)`."""

    wakeups: Wakeups

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 10, wakeups: bool = True) -> Database:
        """Opens "sqlite:////absolute/path.db" or "postgresql://user:password@host:port/name".

        `wakeups` False: this process neither tells others nor hears of them (command-line tools).
        ValueError: another scheme. DatabaseAway: it does not answer.
        """
        raise NotImplementedError

    async def migrate(self) -> None:
        """Brings the tables to the newest version; one process at a time does, the others wait."""
        raise NotImplementedError

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for reading; each statement sees what was committed before it."""
        raise NotImplementedError

    def write(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction, committed at the end. Waits its turn before it takes a connection."""
        raise NotImplementedError

    def beat(self) -> AbstractAsyncContextManager[Transaction]:
        """As write(), by a connection of its own and ahead of all writes: heartbeats and fences, so that a burst of callers
        never costs a lease.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Waits for the transactions under way, then closes every connection."""
        raise NotImplementedError

"""Opens a database from a URL and hands out transactions. Called by gateway/server, which opens and closes it, and by
every module of the store, which takes it first; knows no tables.

    callers ---read()---> turns -> reading connections
            ---write()--> turns -> writing connections     one on SQLite: it has one writer at a time anyway
    beats   ---beat()---> turns -> a connection of their own; on SQLite the writer, ahead of all others
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
import psycopg
from sqlalchemy import URL, Executable, event, make_url, text
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from store import failpoints, migrations
from store.errors import DatabaseAway, NotFound
from store.groups import GroupCommit
from store.migrations import locks, standing
from store.postgres import BeatConnection, PostgresConnection, patient
from store.sqlite import SqliteConnection
from store.turns import Turns
from store.wakeups.base import Topic, Wakeups
from store.wakeups.local import LocalWakeups
from store.wakeups.postgres import PostgresWakeups

BUSY_LIMIT = 10.0  # seconds that a write waits on SQLite for another process's, such as the command line's
POOL_LIMIT = 10.0  # seconds; never met, since callers wait for their turn before they ask the pool
#: Of every engine. A statement that fails is logged without its values: one may be a signed URL or a secret.
LIMITS: dict[str, Any] = {"max_overflow": 0, "pool_timeout": POOL_LIMIT, "hide_parameters": True}
#: A half-open connection is found out within 20 s; a statement that hangs is ended by the server, and one whose caller
#: has gone, too.
POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # A gateway that freezes amid a transaction must not keep its locks from the others for as long as a lease lasts.
    "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=10s"
    " -c client_connection_check_interval=2s -c timezone=UTC",
}

Item = TypeVar("Item")
Result = TypeVar("Result")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class Transaction:
    """A write that is under way."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        #: Published after the commit, never inside it.
        self.wakeups: list[tuple[Topic, str]] = []
        #: State and engine of each tune that it ends; told after the commit.
        self.ended: list[tuple[str, str]] = []

    async def execute(self, statement: Executable, parameters: Parameters = None) -> CursorResult[Any]:
        """Executes one statement, or one with many rows of parameters."""
        return await self.connection.execute(statement, parameters)

    def wake(self, topic: Topic, id: str) -> None:
        """Publishes the id once this transaction is committed."""
        self.wakeups.append((topic, id))

    def tell_end(self, state: str, engine: str) -> None:
        """Tells that a tune has ended, once this transaction is committed."""
        self.ended.append((state, engine))


class Database:
    """An open database. Made by `await Database.open(url)`."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine, beater: AsyncEngine, wakeups: Wakeups) -> None:
        self.wakeups = wakeups
        #: Is told of each tune that a commit of this process has ended: its state and engine. Whoever counts sets it.
        self.tell_ended: Callable[[str, str], None] = lambda state, engine: None
        #: Seconds that SQLite's clock is moved by; see move_clock().
        self._moved = 0.0
        self._reader = reader
        self._writer = writer
        self._beater = beater
        self._groups: dict[object, GroupCommit[Any, Any, Transaction]] = {}
        reads, writes = _connections(reader), _connections(writer)
        if reader.pool is writer.pool:  # one for both: half of it each, so that neither starves the other
            reads, writes = writes - writes // 2, writes // 2
        self._reads = Turns(reads)
        self._writes = Turns(writes)
        self._beats = self._writes if beater is writer else Turns(_connections(beater))

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 10, wakeups: bool = True, create: bool = True) -> Database:
        """Opens "sqlite:////absolute/path.db" or "postgresql://user:password@host:port/name".

        `wakeups` False: this process neither tells others nor hears of them (command-line tools). `create` False: a
        file that is not there is not made, for its path may be mistyped, nor is an empty one filled.
        ValueError: another scheme, or the file is no database, another program's, or cannot be one. NotFound: it is not
        there, and is not to be made. DatabaseAway: it does not answer.
        """
        where = parsed(url)
        is_sqlite = where.get_backend_name() == "sqlite"
        if is_sqlite:
            await asyncio.to_thread(_try_sqlite, Path(str(where.database)), create)
            database = _open_sqlite(where, pool_size)
        else:
            database = _open_postgresql(where, max(pool_size, 2), wakeups=wakeups)
        try:
            async with database.read() as connection:
                await connection.execute(text("SELECT 1"))
        except BaseException:
            await database.close()
            raise
        await database.wakeups.start()
        return database

    @property
    def dialect(self) -> str:
        """ "sqlite", where one gateway is all that may use it, or "postgresql"."""
        return self._writer.dialect.name

    async def check(self) -> None:
        """Changes nothing. NotFound: there are no tables yet. ValueError: they are of another release."""
        async with self.read() as connection:
            await connection.run_sync(standing.check)

    async def migrate(self) -> None:
        """Brings the tables to the newest version; one process at a time does, the others wait. ValueError: a newer
        release has, and nothing is changed.
        """
        async with self.write() as transaction:
            if self.dialect == "postgresql":
                await transaction.execute(text("SET LOCAL statement_timeout = 0"))
                async with patient(transaction.connection):
                    # Ends with the transaction. On SQLite BEGIN IMMEDIATE is lock enough.
                    await transaction.execute(text("SELECT pg_advisory_xact_lock(hashtext('tunesmith.migrate'))"))
                    await transaction.connection.run_sync(standing.refuse_newer)
                    if await transaction.connection.run_sync(migrations.are_missing):
                        await locks.take(transaction.connection)
                    await transaction.connection.run_sync(migrations.upgrade)
            else:
                await transaction.connection.run_sync(standing.refuse_newer)
                await transaction.connection.run_sync(migrations.upgrade)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading; each statement sees what was committed before it."""
        async with self._reads.turn():
            with _away():
                async with self._reader.connect() as connection:
                    yield connection

    @asynccontextmanager
    async def write(self, name: str | None = None) -> AsyncIterator[Transaction]:
        """A transaction, committed at the end. Waits its turn before it takes a connection.

        `name`: that of its failpoints (see failpoints.py), where it has some.
        """
        async with self._writes.turn(), self._transaction(self._writer, name) as transaction:
            yield transaction
        self._publish(transaction)

    @asynccontextmanager
    async def beat(self, name: str | None = None) -> AsyncIterator[Transaction]:
        """As write(), by a connection of its own and ahead of all writes: heartbeats and fences, so that a burst of
        callers never costs a lease.
        """
        async with self._beats.turn(urgent=True), self._transaction(self._beater, name) as transaction:
            yield transaction
        self._publish(transaction)

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, name: str | None) -> AsyncIterator[Transaction]:
        with _away():
            async with engine.begin() as connection:
                yield Transaction(connection)
                if name is not None:
                    await failpoints.reach(f"{name}.before")
            if name is not None:
                await failpoints.reach(f"{name}.committed")

    def group(
        self, name: str, work: Callable[[Transaction, Sequence[Item]], Awaitable[Sequence[Result | Exception]]]
    ) -> GroupCommit[Item, Result, Transaction]:
        """The group in which `work`'s items are committed together (see groups.py), by write(name); one for each
        function.
        """
        if work not in self._groups:
            self._groups[work] = GroupCommit(partial(self.write, name), work)
        return cast("GroupCommit[Item, Result, Transaction]", self._groups[work])

    async def close(self) -> None:
        """Waits for the groups under way, then ends the wake-ups, then closes every connection."""
        for group in self._groups.values():
            await group.close()
        await self.wakeups.close()
        for engine in {id(engine.pool): engine for engine in (self._reader, self._writer, self._beater)}.values():
            await engine.dispose()

    async def move_clock(self, seconds: float) -> None:
        """Moves the one clock that decides, on PostgreSQL for every process. For tests."""
        self._moved += seconds
        if self.dialect == "postgresql":
            async with self.write() as transaction:
                await transaction.execute(text(migrations.clock(self._moved)))

    def sqlite_now(self) -> int:
        """SQLite's clock, microseconds since 1970: called by SQL as tunesmith_now()."""
        return int((time.time() + self._moved) * 1e6)

    def _publish(self, transaction: Transaction) -> None:
        for topic, id in transaction.wakeups:
            self.wakeups.publish(topic, id)
        for state, engine in transaction.ended:
            self.tell_ended(state, engine)


def parsed(url: str) -> URL:
    """Reads a database's URL. ValueError: it is none of ours; the message repeats no password."""
    wanted = "wanted sqlite:////ABSOLUTE/FILE.db or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        found = make_url(url)
    except (sqlalchemy_errors.ArgumentError, ValueError):  # the latter of a port
        raise ValueError(f"the database URL cannot be read; {wanted}") from None
    if found.get_backend_name() == "postgresql":
        return found
    if found.get_backend_name() != "sqlite":
        raise ValueError(f"the database URL begins with {found.drivername!r}; {wanted}")
    if not found.database or found.database == ":memory:":
        raise ValueError("the database URL names no file; wanted sqlite:////ABSOLUTE/FILE.db")
    if found.host or not Path(found.database).is_absolute():
        # Each process would look for it below the folder that it happens to have been started in.
        path = "/".join(filter(None, (found.host, found.database)))
        raise ValueError(
            f"the database URL names {path!r}, which is no absolute path; wanted sqlite:////ABSOLUTE/FILE.db, with four"
            f" slashes: from this folder it led to sqlite:///{Path(path).absolute()}"
        )
    return found


def _open_sqlite(url: URL, pool_size: int) -> Database:
    url = url.set(drivername="sqlite+aiosqlite")
    path = str(url.database)

    async def connect() -> aiosqlite.Connection:
        return await SqliteConnection(path, BUSY_LIMIT)

    limits = {**LIMITS, "async_creator": connect}
    # Each call of the driver is a change of threads, and callers read at every request: so a connection that only reads
    # is set to autocommit once, and has nothing to roll back when it is given back.
    reader = create_async_engine(
        url, pool_size=max(1, pool_size // 2), isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **limits
    )
    writer = create_async_engine(url, pool_size=1, **limits)
    database = Database(reader, writer, writer, LocalWakeups())

    def connected(connection: DBAPIConnection, _: object) -> None:
        _prepare_sqlite(connection, database)

    for engine in (reader, writer):
        event.listen(engine.sync_engine, "connect", connected)
    event.listen(writer.sync_engine, "begin", _begin_immediate)
    return database


def _try_sqlite(path: Path, create: bool) -> None:
    """Opens the file once without aiosqlite: its thread outlives a connection that could not be opened, for a moment
    that is sometimes longer than the event loop's.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; the path of a file was wanted")
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise NotFound(f"there is no database {path}")
    except OSError as error:
        raise ValueError(f"the database's folder {path.parent} cannot be used: {error.strerror}") from error
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_LIMIT)) as connection:
            has_tables = standing.read_file(connection, path)
        if not (has_tables or create):
            raise NotFound(f"there is no database in {path}, which is empty")
    except (sqlite3.OperationalError, OSError) as error:
        raise DatabaseAway(f"the database is away: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} cannot be read as a database of SQLite: {error}") from error


def _open_postgresql(url: URL, pool_size: int, *, wakeups: bool) -> Database:
    url = url.set(drivername="postgresql+psycopg")

    def opened(size: int, connection: type[PostgresConnection]) -> AsyncEngine:
        arguments = {**POSTGRESQL, "async_creator_fn": connection.connect}
        limits = {**LIMITS, "connect_args": arguments}
        return create_async_engine(url, pool_size=size, **limits)

    engine, beater = opened(pool_size, PostgresConnection), opened(1, BeatConnection)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    reader = engine.execution_options(isolation_level="AUTOCOMMIT")  # the same pool
    return Database(reader, engine, beater, PostgresWakeups(plain) if wakeups else LocalWakeups())


def _prepare_sqlite(connection: Any, database: Database) -> None:  # noqa: ANN401  # SQLAlchemy's adapter has no public type
    """A new connection: durable, checked, and with our clock."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut; NORMAL would lose the newest in WAL
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
    # "Deterministic" means to SQLite: one call a statement. So a statement has one time, as on PostgreSQL.
    connection.create_function("tunesmith_now", 0, database.sqlite_now, deterministic=True)
    connection.create_function(
        "tunesmith_later", 1, lambda seconds: database.sqlite_now() + int(seconds * 1e6), deterministic=True
    )


def _begin_immediate(connection: Connection) -> None:
    """Takes the write lock at once: who begins by reading and wants it later fails instead of waiting."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _connections(engine: AsyncEngine) -> int:
    return cast("int", cast("Any", engine.pool).size())


#: What SQLite says when the file, not the statement, is at fault.
_SQLITE_AWAY = ("locked", "busy", "disk I/O error", "unable to open", "full", "readonly")


@contextmanager
def _away() -> Iterator[None]:
    """Turns a lost, refused or overloaded database into DatabaseAway; lets faults of ours through."""
    try:
        yield
    except sqlalchemy_errors.DBAPIError as error:
        if error.connection_invalidated or _is_away(error.orig):
            raise DatabaseAway(f"the database is away: {error.orig}") from error
        raise
    except (sqlalchemy_errors.TimeoutError, OSError) as error:
        raise DatabaseAway(f"the database is away: {error}") from error


def _is_away(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return any(word in str(error) for word in _SQLITE_AWAY)
    # Deadlocks and statement timeouts are operational errors too: ask again is the right answer to them as well.
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))

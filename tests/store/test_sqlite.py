"""SQLite's driver: what a statement leaves, and when there is nothing to roll back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.sqlite import SqliteConnection

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT count(*) FROM n"


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[SqliteConnection]:
    opened = SqliteConnection(str(tmp_path / "x.db"), 1.0)
    async with opened:
        await opened.cursor().execute("CREATE TABLE t (x INTEGER)")
        yield opened


async def count(connection: SqliteConnection) -> int:
    outcome = await connection.complete("SELECT count(*) FROM t", (), many=False)
    return int(outcome.rows[0][0])


async def test_a_statement_is_read_to_its_end_and_counted(connection: SqliteConnection) -> None:
    cursor = connection.cursor()

    await cursor.execute("INSERT INTO t VALUES (?), (?) RETURNING x", (1, 2))

    assert await cursor.fetchall() == [(1,), (2,)]
    assert [column[0] for column in cursor.description] == ["x"]
    assert (cursor.rowcount, cursor.lastrowid) == (2, 2)


async def test_many_rows_are_counted_together_and_leave_none(connection: SqliteConnection) -> None:
    cursor = connection.cursor()

    await cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,), (3,)])

    assert (cursor.rowcount, cursor.description, await cursor.fetchall()) == (3, None, [])
    assert await count(connection) == 3


async def test_a_statement_that_fails_leaves_the_connection_usable(connection: SqliteConnection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        await connection.cursor().execute("SELECT * FROM nonsense")

    assert await count(connection) == 0


async def test_what_is_begun_is_rolled_back(connection: SqliteConnection) -> None:
    await connection.cursor().execute("BEGIN IMMEDIATE")
    await connection.cursor().execute("INSERT INTO t VALUES (1)")

    await connection.rollback()

    assert not connection.in_transaction
    assert await count(connection) == 0


async def test_what_is_begun_hinders_nobody_once_the_connection_is_closed(tmp_path: Path) -> None:
    first, second = (SqliteConnection(str(tmp_path / "x.db"), 0.0) for _ in range(2))
    async with first:
        await first.cursor().execute("BEGIN IMMEDIATE")
        await first.cursor().execute("CREATE TABLE t (x INTEGER)")
    async with second:
        await second.cursor().execute("CREATE TABLE t (x INTEGER)")


async def test_what_a_cancelled_caller_begins_afterwards_is_rolled_back_too(connection: SqliteConnection) -> None:
    slow = asyncio.create_task(connection.complete(SLOW, (), many=False))
    beginning = asyncio.create_task(connection.complete("BEGIN IMMEDIATE", (), many=False))
    await asyncio.sleep(0)  # both are on their way to the thread
    slow.cancel()
    beginning.cancel()
    await asyncio.wait([slow, beginning])
    assert not connection.in_transaction

    await connection.rollback()

    await count(connection)  # comes behind all that is under way
    assert not connection.in_transaction

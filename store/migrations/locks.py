"""Takes every table's lock before an upgrade touches the first. Called by Database.migrate() on PostgreSQL, in its
transaction; knows no versions.

Gateways of the release before go on while the new one's first gateway upgrades. Their transactions come to the tables
in orders of their own: a move at tunes and later at the webhooks, a submission at tenants and assets and later at
tunes. So whatever order an upgrade has, it meets one of them in a circle, in which PostgreSQL fails one of the two:
now the upgrade, now a trainer's report.

Hence nothing is waited for long while something is held. A try has all locks within LIMIT, or gives all of them back,
lets the others come to their end, and begins anew. LIMIT is below PostgreSQL's deadlock_timeout (1 s): a transaction
that runs into a try goes on before the server looks for circles, so it is never the one that fails.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

from psycopg import errors
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

import store.webhooks.tables  # noqa: F401  # fills the metadata, with all of store.tables

LIMIT = 0.5  # seconds of a try; whoever wants one of the tables meanwhile waits so long
PAUSE = 0.5  # seconds between two tries
SAID = 60  # tries from one line in the log to the next

log = logging.getLogger(__name__)


async def take(connection: AsyncConnection) -> None:
    """Locks each of our tables that stands in the database until the transaction ends. Waits without end: also for a
    backup, which reads for hours, and which callers are served beside meanwhile.
    """
    names = await connection.run_sync(_tables)
    if not names:
        return  # the database is new
    for tries in itertools.count():
        if await _taken(connection, names):
            return
        if tries % SAID == 0:
            # An operator would take it for a gateway that hangs.
            waits = "The database's upgrade waits for transactions open on its tables; pg_stat_activity shows whose"
            log.warning(waits, extra={"action": "upgrade_waits"})
        await asyncio.sleep(PAUSE)


def _tables(connection: Connection) -> list[str]:
    """Ours alone: an extension's are not ours to lock."""
    standing = set(inspect(connection).get_table_names())
    return [table.name for table in SQLModel.metadata.sorted_tables if table.name in standing]


async def _taken(connection: AsyncConnection, names: list[str]) -> bool:
    """One try. The savepoint gives back what it had locked."""
    try:
        async with connection.begin_nested():
            # The statement's limit, not lock_timeout, which counts for each table anew.
            await connection.execute(text(f"SET LOCAL statement_timeout = {round(LIMIT * 1000)}"))
            await connection.execute(text(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"))
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
    except DBAPIError as error:
        # A deadlock: the server was set to look for circles sooner.
        if not isinstance(error.orig, (errors.QueryCanceled, errors.DeadlockDetected)):
            raise
        return False
    return True

"""Whether a database is one that this release may use as it stands, make its tables in, or neither. Called by
Database.open(), check() and migrate() before anything is changed; makes and changes nothing itself.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from store import migrations
from store.errors import NotFound

VERSION = "alembic_version"  # a table that any program's database may have which Alembic looks after
OURS = {VERSION, "tenants", "tunes"}  # from the first revision on


def read_file(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether an SQLite file has our tables already; False: it has none at all.

    Reads through a plain connection: our own would turn another program's file to WAL. ValueError: it is another
    program's, which has no schemas to keep ours apart.
    """
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*' ORDER BY name"
    names = [str(name) for (name,) in connection.execute(query)]
    if set(names) <= {VERSION}:
        return False
    if not set(names) >= OURS:
        first = next(name for name in names if name != VERSION)
        raise ValueError(
            f"{path} is another program's database: it has a table {first!r}, and not those of Tunesmith; a file of its"
            " own was wanted"
        )
    return True


def check(connection: Connection) -> None:
    """What a command asks first. NotFound: the database has no tables yet. ValueError: it is of another release."""
    found, newest = _found(connection), _newest(connection)
    if not found:
        raise NotFound(f"the database {connection.engine.url.database} has no tables of Tunesmith yet")
    refuse_newer(connection)
    if found != newest:
        raise ValueError(
            f"the database {connection.engine.url.database} is at revision {_said(found)}, and this release wants"
            f" {_said(newest)}: start a gateway of this release, which brings it up to date"
        )


def refuse_newer(connection: Connection) -> None:
    """What an upgrade asks first. ValueError: it has a revision that this release does not know."""
    known = {script.revision for script in _scripts(connection).walk_revisions()}
    if unknown := _found(connection) - known:
        raise ValueError(
            f"the database {connection.engine.url.database} is at revision {_said(unknown)}, which this release does"
            f" not know, its own newest being {_said(_newest(connection))}: run the newer release that has upgraded it,"
            " or restore the backup from before that upgrade"
        )


def _found(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


def _newest(connection: Connection) -> set[str]:
    return set(_scripts(connection).get_heads())


def _scripts(connection: Connection) -> ScriptDirectory:
    return ScriptDirectory.from_config(migrations.configuration(connection))


def _said(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions))

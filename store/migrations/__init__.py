"""Brings a database's tables to the newest version. Called by Database.migrate() inside its transaction; the versions
stand in versions/, made by Alembic and edited by hand.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(connection: Connection) -> None:
    """Applies what is missing, in the connection's own transaction."""
    command.upgrade(configuration(connection), "head")


def are_missing(connection: Connection) -> bool:
    """Whether the database is not at the newest version."""
    newest = ScriptDirectory.from_config(configuration(connection)).get_heads()
    return set(MigrationContext.configure(connection).get_current_heads()) != set(newest)


def configuration(connection: Connection) -> Config:
    """Alembic's configuration, which needs no file: env.py takes the connection from it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def clock(moved_seconds: float = 0.0) -> str:
    """PostgreSQL's tunesmith_now(). Stable and in SQL, so that it is inlined and an index is searched by it."""
    return (
        "CREATE OR REPLACE FUNCTION tunesmith_now() RETURNS timestamptz LANGUAGE sql STABLE "
        f"AS 'SELECT statement_timestamp() + make_interval(secs => {float(moved_seconds)!r})'"
    )

"""Models and migrations say the same, on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from store.database import Database

CATALOGUE = {
    "sqlite": "SELECT name, replace(sql, '\"', '') AS sql FROM sqlite_master WHERE sql IS NOT NULL"
    " AND name <> 'alembic_version' AND type <> 'trigger' ORDER BY name",
    "postgresql": "SELECT conrelid::regclass || '.' || conname AS name, pg_get_constraintdef(oid) AS sql"
    " FROM pg_constraint WHERE conrelid <> 0 AND conrelid::regclass::text <> 'alembic_version'"
    " UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " AND tablename <> 'alembic_version' ORDER BY 1",
}


async def test_there_is_nothing_left_to_migrate(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, SQLModel.metadata)
        # Alembic cannot read back a descending index on SQLite; the next test compares them as the database has them.
        return [each for each in found if not str(each[0]).endswith("_index")]

    async with database.write() as transaction:
        assert await transaction.connection.run_sync(differences) == []


async def test_checks_and_indexes_are_the_models_own(database: Database) -> None:
    """What Alembic does not compare: the migrated database against one made from the models."""
    catalogue = text(CATALOGUE[database.dialect])
    async with database.write() as transaction:
        migrated = {row.name: _words(row.sql) for row in await transaction.execute(catalogue)}
        await transaction.connection.run_sync(SQLModel.metadata.drop_all)
        await transaction.connection.run_sync(SQLModel.metadata.create_all)
        made = {row.name: _words(row.sql) for row in await transaction.execute(catalogue)}

    assert migrated == made


async def test_migrating_again_and_at_once_changes_nothing(database_url: str) -> None:
    gateways = [await Database.open(database_url) for _ in range(3)]

    await asyncio.gather(*(gateway.migrate() for gateway in gateways))

    for gateway in gateways:
        await gateway.close()


async def test_gateways_that_start_at_once_migrate_an_empty_database_once(postgres_server: Any, tmp_path: Any) -> None:
    for url in (f"sqlite:///{tmp_path / 'new.db'}", postgres_server.url_of(postgres_server.create_database())):
        gateways = [await Database.open(url) for _ in range(3)]

        await asyncio.gather(*(gateway.migrate() for gateway in gateways))

        for gateway in gateways:
            await gateway.close()


def _words(sql: str) -> list[str]:
    """Columns and constraints in any order: Alembic's and SQLAlchemy's differ."""
    return sorted(sql.replace("(", " ").replace(")", " ").replace(",", " ").split())

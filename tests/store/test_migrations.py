"""Models and migrations say the same, on both databases."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from store import migrations
from store.database import Database
from store.errors import NotFound
from store.migrations import locks
from store.webhooks import endpoints, messages
from tests.store.world import World

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


async def test_database_of_another_release_is_told_from_one_of_this(database: Database) -> None:
    await database.check()

    for revision, told in (("0001", "is at revision 0001, and this release wants"), ("9999", "does not know")):
        async with database.write() as transaction:
            await transaction.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        with pytest.raises(ValueError, match=told):
            await database.check()
    with pytest.raises(ValueError, match="is at revision 9999, which this release does not know"):
        await database.migrate()


async def test_database_without_tables_is_told(postgres_server: Any) -> None:
    opened = await Database.open(postgres_server.url_of(postgres_server.create_database()), wakeups=False)

    with pytest.raises(NotFound, match="has no tables of Tunesmith yet"):
        await opened.check()
    await opened.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("order", ["a move's", "a submission's"])
async def test_upgrade_and_a_gateway_of_before_that_is_amid_a_transaction_both_come_to_their_end(
    world: World, database_url: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LIMIT", 0.2)
    monkeypatch.setattr(locks, "PAUSE", 0.05)
    endpoint, _ = await endpoints.add(world.database, "acme", "https://receiver.example/hook")
    tune = await world.queued()
    async with world.database.write() as transaction:
        await transaction.connection.run_sync(lambda it: command.downgrade(migrations.configuration(it), "0007"))
    touch_tune = f"UPDATE tunes SET step = 7 WHERE id = '{tune.id}'"
    tell = (
        "INSERT INTO webhook_deliveries"
        " (message_id, endpoint_id, tune_id, event_type, body, state, due_at, epoch, tries, created_at)"
        f" VALUES ('msg_1', '{endpoint.id}', '{tune.id}', 'tune.running', '{{}}', 'pending', now(), 0, 0, now())"
    )
    read_assets = "SELECT id FROM assets FOR KEY SHARE"
    first, *then = [touch_tune, tell] if order == "a move's" else [read_assets, touch_tune, tell]
    newer = await Database.open(database_url, wakeups=False)

    async with world.database.write() as old:
        await old.execute(text("SET LOCAL deadlock_timeout = '600ms'"))  # in a circle it would be the one that fails
        await old.execute(text(first))
        upgrade = asyncio.create_task(newer.migrate())
        await _blocked(world.database)
        for statement in then:
            await old.execute(text(statement))
    await upgrade

    async with newer.read() as connection:
        assert (await connection.execute(text("SELECT step, traceparent FROM tunes"))).all() == [(7, None)]
    assert [entry.delivery.message_id for entry in await messages.log(newer)] == ["msg_1"]
    await newer.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_upgrade_that_waits_says_so_now_and_then(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken, tries = locks._taken, itertools.count(1)

    async def taken_at_last(*args: Any) -> bool:
        return next(tries) > 3 and await taken(*args)

    monkeypatch.setattr(locks, "_taken", taken_at_last)
    monkeypatch.setattr(locks, "SAID", 2)
    monkeypatch.setattr(locks, "PAUSE", 0.01)
    async with world.database.write() as transaction:
        await transaction.connection.run_sync(lambda it: command.downgrade(migrations.configuration(it), "0010"))
    newer = await Database.open(database_url, wakeups=False)

    await newer.migrate()

    assert (
        sum("upgrade waits" in record.getMessage() for record in caplog.records) == 2
    )  # at the first try and the third
    await newer.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_gateway_that_starts_on_an_upgraded_database_waits_for_nobody(world: World, database_url: str) -> None:
    newer = await Database.open(database_url, wakeups=False)

    async with world.database.write() as old:
        await old.execute(text("UPDATE tenants SET weight = 2"))
        await asyncio.wait_for(newer.migrate(), 10)

    await newer.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_upgrade_that_has_its_locks_may_take_as_long_as_it_likes(database: Database) -> None:
    async with database.write() as transaction:
        await locks.take(transaction.connection)
        limit = (await transaction.execute(text("SHOW statement_timeout"))).scalar_one()

    assert limit == "0"


async def _blocked(database: Database) -> None:
    """Waits until somebody waits for a lock: the server tells nobody of it."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while True:
        async with database.read() as connection:
            if (await connection.execute(text(waiting))).scalar_one():
                return
        await asyncio.sleep(0.005)


def _words(sql: str) -> list[str]:
    """Columns and constraints in any order: Alembic's and SQLAlchemy's differ."""
    return sorted(sql.replace("(", " ").replace(")", " ").replace(",", " ").split())

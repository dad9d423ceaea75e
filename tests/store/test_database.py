"""Transactions, turns, outages: what the database promises to the modules that stand on it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from store import errors, keys, leases, tunes
from store.database import Database
from store.dialect import now
from store.postgres import BeatConnection, PostgresConnection, patient
from store.tables import tenants
from tests.servers.postgres import PostgresServer
from tests.store.world import LEASE, World, make_world


def tenant(name: str) -> dict[str, str]:
    return {"id": name, "name": name}


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return [row.name for row in await connection.execute(select(tenants.c.name).order_by(tenants.c.name))]


async def test_a_write_that_fails_leaves_nothing_and_wakes_nobody(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.write() as transaction:
            await transaction.execute(insert(tenants).values(**tenant("a"), created_at=now()))
            transaction.wake("tune", "x")
            raise ZeroDivisionError

    async with database.wakeups.subscribe("tune") as woken:
        with pytest.raises(ZeroDivisionError):
            await write_and_fail()

        assert await woken.wait(0) == []
    assert await names(database) == []


async def test_a_wake_up_comes_after_the_commit(database: Database) -> None:
    async with database.wakeups.subscribe("tune") as woken:
        async with database.write() as transaction:
            transaction.wake("tune", "x")
            assert await woken.wait(0) == []

        assert await woken.wait(1.0) == ["x"]


async def test_a_fault_of_ours_is_no_outage(database: Database) -> None:
    await keys.create_tenant(database, "a")

    with pytest.raises(IntegrityError):
        async with database.write() as transaction:
            await transaction.execute(insert(tenants).values(**tenant("a"), created_at=now()))
    with pytest.raises(Exception, match="nonsense"):
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM nonsense"))


async def test_a_thousand_callers_at_once_starve_no_heartbeat(world: World) -> None:
    claim = await world.running()
    callers = [asyncio.create_task(keys.find_or_create_tenant(world.database, f"t{number}")) for number in range(300)]
    readers = [asyncio.create_task(names(world.database)) for _ in range(300)]
    await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)

    renewal = await leases.renew(world.database, "trainer-1", [claim.lease], LEASE)

    waiting = sum(not caller.done() for caller in callers)
    assert renewal.extended == [claim.lease]
    assert waiting > 0, "the beat came after all the callers"
    await asyncio.gather(*callers, *readers)


async def test_a_cancelled_caller_gives_its_turn_to_the_next(database: Database) -> None:
    async with database.write():
        callers = [asyncio.create_task(keys.find_or_create_tenant(database, f"t{number}")) for number in range(20)]
        await asyncio.sleep(0)
        for caller in callers[::2]:
            caller.cancel()
    done = await asyncio.gather(*callers, return_exceptions=True)

    assert sum(isinstance(each, asyncio.CancelledError) for each in done) == 10
    assert len(await names(database)) >= 10
    async with asyncio.timeout(5):
        await keys.create_tenant(database, "after")


async def test_a_write_that_is_cancelled_twice_ends_and_hinders_nobody(database: Database) -> None:
    async def write_slowly() -> None:
        many = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT count(*) FROM n"
        )
        async with database.write() as transaction:
            await transaction.execute(insert(tenants).values(**tenant("a"), created_at=now()))
            began.set()
            await transaction.execute(text(many))

    before, began = asyncio.all_tasks(), asyncio.Event()
    writing = asyncio.create_task(write_slowly())
    await began.wait()
    await asyncio.sleep(0.01)  # the statement is under way
    while not writing.done():
        writing.cancel()
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {writing}
    for task in left:
        task.cancel()  # as the event loop's end does

    assert writing.cancelled()
    async with asyncio.timeout(20):
        await asyncio.gather(*left, return_exceptions=True)
        async with database.write() as transaction:
            await transaction.execute(insert(tenants).values(**tenant("b"), created_at=now()))
    assert await names(database) == ["b"]


async def test_the_clock_can_be_moved(database: Database) -> None:
    async def time() -> float:
        async with database.read() as connection:
            moment = (await connection.execute(select(now()))).scalar_one()
            assert moment.tzinfo is not None
            return moment.timestamp()

    before = await time()
    await database.move_clock(1000)

    assert 1000 <= await time() - before < 1100


async def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="mysql"):
        await Database.open("mysql://localhost/x")
    with pytest.raises(ValueError, match="names no file"):
        await Database.open("sqlite://")


async def test_a_server_that_is_not_there_is_away() -> None:
    with pytest.raises(errors.DatabaseAway):
        await Database.open("postgresql://nobody@127.0.0.1:1/none")


async def test_a_file_that_cannot_be_opened_is_away(tmp_path: Path) -> None:
    (tmp_path / "gone.db").symlink_to("/proc/gone/a.db")

    with pytest.raises(errors.DatabaseAway, match="unable to open"):
        await Database.open(f"sqlite:///{tmp_path / 'gone.db'}")


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder; the path of a file was wanted"):
        await Database.open(f"sqlite:///{tmp_path}")


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ValueError, match=f"^the database's folder {tmp_path}/file cannot be used: File exists"):
        await Database.open(f"sqlite:///{tmp_path}/file/a.db")


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n" * 40)

    with pytest.raises(ValueError, match=f"^{tmp_path}/passwd cannot be read as a database of SQLite: file is not a"):
        await Database.open(f"sqlite:///{tmp_path}/passwd")


async def test_a_file_that_is_not_to_be_made_is_not(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match=f"there is no database {tmp_path}/folder/a.db"):
        await Database.open(f"sqlite:///{tmp_path}/folder/a.db", create=False)

    assert not (tmp_path / "folder").exists()


async def test_sqlite_survives_a_power_cut_and_checks_references(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    for opened in (database.read, database.write):
        async with opened() as session:
            pragmas = [
                (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        assert pragmas == ["wal", 2, 1]
    await database.close()


async def test_after_an_outage_everything_goes_on_by_itself(tmp_path: Path) -> None:
    with PostgresServer(durable=True) as server:
        database = await Database.open(server.url_of(server.create_database()))
        await database.migrate()
        world = await make_world(database)
        claim = await world.running()
        new = world.new_tune([await world.file()])
        server.stop(signal.SIGQUIT)

        with pytest.raises(errors.DatabaseAway):
            await tunes.submit(database, new)
        with pytest.raises(errors.DatabaseAway):
            await leases.renew(database, "trainer-1", [claim.lease], LEASE)
        with pytest.raises(errors.DatabaseAway):
            await world.tune(claim.tune.id)
        server.start()
        async with asyncio.timeout(10):
            while True:  # a connection of before may be met once
                try:
                    submitted = await tunes.submit(database, new)
                    renewal = await leases.renew(database, "trainer-1", [claim.lease], LEASE)
                    break
                except errors.DatabaseAway:
                    continue

        assert submitted.tune.name == new.name
        assert renewal.extended == [claim.lease]
        await database.close()


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[tuple[PostgresServer, World]]:
    """A server that hangs, and a world on it whose connections are open."""
    with PostgresServer() as server:
        database = await Database.open(server.url_of(server.create_database()))
        await database.migrate()
        world = await make_world(database)
        await leases.reap(database, LEASE)  # beats have a connection of their own
        server.freeze()
        yield server, world
        server.thaw()
        await database.close()


async def test_a_heartbeat_that_gives_up_on_a_server_that_hangs_lets_the_next_one_try(
    frozen: tuple[PostgresServer, World],
) -> None:
    server, world = frozen
    lease = leases.LeaseRef("tune_x", 1, "trainer-1")

    async with asyncio.timeout(8):  # the driver alone would keep the connection for ten seconds
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await leases.renew(world.database, "trainer-1", [lease], LEASE)
    server.thaw()

    assert (await leases.renew(world.database, "trainer-1", [lease], LEASE)).lost == [lease]


async def test_a_round_of_the_reaper_that_hangs_leaves_the_beats_connection_soon(
    frozen: tuple[PostgresServer, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, world = frozen
    monkeypatch.setattr(BeatConnection, "patience", 0.2)

    async with asyncio.timeout(20):  # as long as others may wait, it would hold up all beats
        with pytest.raises(errors.DatabaseAway, match=r"has not answered for 0\.2 seconds"):
            await leases.reap(world.database, LEASE)


async def test_a_server_that_hangs_is_away(
    frozen: tuple[PostgresServer, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, world = frozen
    monkeypatch.setattr(PostgresConnection, "patience", 0.2)

    with pytest.raises(errors.DatabaseAway, match=r"has not answered for 0\.2 seconds"):
        await names(world.database)
    monkeypatch.undo()
    server.thaw()

    assert await names(world.database)


async def test_a_migration_is_waited_for_without_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = await Database.open(postgres_url)
    monkeypatch.setattr(PostgresConnection, "patience", 0.2)
    slowly = text("SELECT pg_sleep(1)")

    waited = []

    async def migrate_and_go_on() -> None:
        async with database.write() as transaction:
            async with patient(transaction.connection):
                waited.append(await transaction.execute(slowly))
            await transaction.execute(slowly)

    with pytest.raises(errors.DatabaseAway, match="has not answered"):
        await migrate_and_go_on()

    assert len(waited) == 1
    await database.close()


async def test_a_backend_that_is_terminated_is_away_once(world: World, request: pytest.FixtureRequest) -> None:
    if world.database.dialect == "sqlite":
        return  # has no backends
    with pytest.raises(errors.DatabaseAway):
        async with world.database.write() as transaction:
            await transaction.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert (await keys.create_tenant(world.database, "after")).name == "after"

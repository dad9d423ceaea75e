"""Two gateways lock the same rows, and neither waits for the other in a circle.

Each test holds a row, lets one gateway and then another run into it or into one another, and lets go. PostgreSQL ends a
circle by failing one of the two (DatabaseAway); SQLite has one writer at a time, and no circles.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import ColumnElement, Table, select, text, update

from store import keys, leases, tunes
from store.database import Database, Transaction
from store.dialect import now
from store.leases import Held, HeldAction, LeaseRef
from store.states import TuneState
from store.submission import write_submissions
from store.tables import Tenant, queues
from store.tables import tunes as tunes_table
from tests.store.world import LEASE, World

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def other(world: World, database_url: str) -> AsyncIterator[World]:
    """The same through another gateway."""
    second = await world.other_gateway(database_url)
    yield second
    await second.database.close()


async def test_hello_that_ends_leases_and_a_reaper_go_from_tenant_to_tenant_in_one_order(
    world: World, other: World
) -> None:
    later, sooner = await _two_tenants(world)
    forgotten = [await _running(world, "trainer-1", tenant) for tenant in (later, sooner)]
    doomed = [await _running(world, "trainer-2", tenant) for tenant in (sooner, later)]
    await _lose(world, doomed)

    async with world.database.write() as holding:
        # Whoever counts the later tenant's queue now waits here, with whatever else it has locked.
        await _hold(holding, queues, queues.c.tenant_id == later.id)
        hello = asyncio.create_task(leases.restate(world.database, "trainer-1", [], LEASE))
        await _blocked(world.database, 1)
        reaping = asyncio.create_task(leases.reap(other.database, LEASE))
        await _blocked(world.database, 2)

    assert await hello == {}
    assert await reaping == 2
    assert [await _state(world, lease) for lease in (*forgotten, *doomed)] == [
        *[TuneState.QUEUED] * 2,
        *[TuneState.CANCELLED] * 2,
    ]


async def test_hello_that_ends_leases_and_submissions_go_from_tenant_to_tenant_in_one_order(
    world: World, other: World
) -> None:
    later, sooner = await _two_tenants(world)
    for tenant in (later, sooner):
        await _running(world, "trainer-1", tenant)
    news = [world.new_tune([await world.file(tenant=tenant)], tenant_id=tenant.id) for tenant in (sooner, later)]

    async def submit() -> list[bool]:
        async with other.database.write() as transaction:
            accepted = await write_submissions(transaction, news)
            return [isinstance(each, tunes.Submitted) for each in accepted]

    async with world.database.write() as holding:
        await _hold(holding, queues, queues.c.tenant_id == later.id)
        hello = asyncio.create_task(leases.restate(world.database, "trainer-1", [], LEASE))
        await _blocked(world.database, 1)
        submitting = asyncio.create_task(submit())
        await _blocked(world.database, 2)

    assert await hello == {}
    assert await submitting == [True, True]


async def test_a_beat_and_a_hello_of_one_trainer_go_from_tune_to_tune_in_one_order(world: World, other: World) -> None:
    first, second = await world.queued(), await world.queued(priority=1)
    # The second is claimed first, so that the first one's row lies after it, where a scan of the table comes later.
    claims = [await world.claim() for _ in range(2)]
    held = [claim.lease for claim in claims if claim is not None]
    assert [lease.tune_id for lease in held] == [second.id, first.id]

    async with world.database.write() as holding:
        await _hold(holding, tunes_table, tunes_table.c.id == first.id)
        hello = asyncio.create_task(leases.restate(world.database, "trainer-1", [Held(lease) for lease in held], LEASE))
        await _blocked(world.database, 1)
        beat = asyncio.create_task(leases.renew(other.database, "trainer-1", held, LEASE))
        await _blocked(world.database, 2)

    assert await hello == dict.fromkeys(held, HeldAction.CONTINUE)
    assert (await beat).extended == held


async def _two_tenants(world: World) -> tuple[Tenant, Tenant]:
    """The one whose id comes later in the order, and the other."""
    pair = sorted([world.tenant, await keys.create_tenant(world.database, "other")], key=lambda tenant: tenant.id)
    return pair[1], pair[0]


async def _running(world: World, trainer_id: str, tenant: Tenant) -> LeaseRef:
    new = world.new_tune([await world.file(tenant=tenant)], tenant_id=tenant.id)
    await tunes.submit(world.database, new)
    claim = await world.claim(trainer_id)
    assert claim is not None
    assert await leases.accept(world.database, claim.lease)
    return claim.lease


async def _lose(world: World, doomed: list[LeaseRef]) -> None:
    """Cancelled ones whose leases have ended: a reaper's."""
    those = update(tunes_table).where(tunes_table.c.id.in_([lease.tune_id for lease in doomed]))
    async with world.database.write() as transaction:
        await transaction.execute(those.values(cancel_requested_at=now(), lease_expires_at=now()))


async def _state(world: World, lease: LeaseRef) -> TuneState:
    async with world.database.read() as connection:
        found = await connection.execute(select(tunes_table.c.state).where(tunes_table.c.id == lease.tune_id))
        return TuneState(found.scalar_one())


async def _hold(transaction: Transaction, table: Table, which: ColumnElement[bool]) -> None:
    """Locks the rows until the transaction ends."""
    held = (await transaction.execute(select(table).where(which).with_for_update(key_share=True))).all()
    assert held


async def _blocked(database: Database, wanted: int) -> None:
    """Waits until so many transactions wait for a lock: the server tells nobody of it."""
    while True:
        async with database.read() as connection:
            if (await connection.execute(_WAITING)).scalar_one() == wanted:
                return
        await asyncio.sleep(0.005)


_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

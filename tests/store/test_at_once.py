"""Two gateways, many trainers and callers at once: nobody waits in a circle, and every counter is right afterwards."""

from __future__ import annotations

import asyncio
import itertools
import random

from sqlalchemy import func, select

from store import leases, reports, tunes
from store.database import Database
from store.leases import Held
from store.reports import LoraResult
from store.states import TERMINAL, TuneState
from store.tables import queues, tenants
from store.tables import tunes as tunes_table
from tests.store.world import LEASE, World

TUNES = 40
TRAINERS = 8


async def test_everything_at_once_ends_with_every_tune_ended_and_every_counter_right(
    world: World, database_url: str
) -> None:
    other = await world.other_gateway(database_url)
    file = await world.file()
    chance, numbers = random.Random(7), itertools.count()
    cancelled: set[str] = set()
    submitted: list[str] = []

    async def call(gateway: World) -> None:
        for _ in range(TUNES // 4):
            tune = (
                await tunes.submit(gateway.database, gateway.new_tune([file], name=f"{id(gateway)}-{next(numbers)}"))
            ).tune
            submitted.append(tune.id)
            if chance.random() < 0.3:
                victim = chance.choice(submitted)
                if (await tunes.cancel(gateway.database, gateway.tenant.id, victim)).state not in TERMINAL:
                    cancelled.add(victim)

    async def train(gateway: World, trainer_id: str, callers: asyncio.Future[list[None]]) -> None:
        while True:
            claim = await gateway.claim(trainer_id)
            if claim is None and callers.done() and await _idle(gateway.database):
                return
            if claim is None:
                await asyncio.sleep(0.01)
            elif await leases.accept(gateway.database, claim.lease):
                await _train(gateway.database, claim.lease, chance)

    callers = asyncio.gather(*(call(gateway) for gateway in (world, other, world, other)))
    trainers = [train((world, other)[number % 2], f"trainer-{number}", callers) for number in range(TRAINERS)]
    await asyncio.gather(callers, *trainers)

    states = await _states(world.database)
    assert sum(states.values()) == len(submitted) == TUNES
    assert set(states) <= TERMINAL
    for tune_id in cancelled:
        assert (await world.tune(tune_id)).state is TuneState.CANCELLED
    async with world.database.read() as connection:
        tenant = (await connection.execute(select(tenants).where(tenants.c.id == world.tenant.id))).one()
        queued = (await connection.execute(select(func.sum(queues.c.queued)))).scalar_one()
    assert (tenant.queued, tenant.running, queued) == (0, 0, 0)
    await other.database.close()


async def _train(database: Database, lease: leases.LeaseRef, chance: random.Random) -> None:
    """One attempt, with a beat and a Hello in its way."""
    async with asyncio.TaskGroup() as group:
        group.create_task(reports.record_progress(database, lease, "training", 1))
        group.create_task(leases.renew(database, lease.trainer_id, [lease], LEASE))
        group.create_task(leases.reap(database, LEASE))
        group.create_task(leases.restate(database, lease.trainer_id, [Held(lease)], LEASE))
    fate = chance.random()
    if fate < 0.6:
        await reports.finish(database, lease, 1, LoraResult(f"loras/{lease.tune_id}", "a" * 64, 1, 10, 0.1, 1))
    elif fate < 0.8:
        await reports.give_back(database, lease, 1, 1)
    elif fate < 0.9:
        await reports.fail(database, lease, 1, "X", "x", retryable=True, crashed=True)
    else:
        await leases.restate(database, lease.trainer_id, [], LEASE)


async def _idle(database: Database) -> bool:
    return set(await _states(database)) <= TERMINAL


async def _states(database: Database) -> dict[TuneState, int]:
    counted = select(tunes_table.c.state, func.count().label("tunes")).group_by(tunes_table.c.state)
    async with database.read() as connection:
        return {row.state: row.tunes for row in await connection.execute(counted)}

"""Why a tune waits; and remembered answers: how long they last, and who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from gateway.places import Places, Remembered, limit_sentence
from store import tenants, trainers
from store.database import Database
from tests.store.world import ENGINE, PLENTY, World, make_world


async def test_answer_lasts_twenty_times_as_long_as_it_took_and_two_seconds_at_most() -> None:
    now, took, found = 100.0, 0.01, []

    async def find(key: str) -> int:
        nonlocal now
        now += took
        found.append(key)
        return len(found)

    remembered = Remembered(find, clock=lambda: now)

    assert await remembered.get("a") == 1
    now += 0.19
    assert await remembered.get("a") == 1
    now += 0.02
    took = 3.0
    assert await remembered.get("a") == 2
    now += 1.9
    assert await remembered.get("a") == 2
    now += 0.2
    assert await remembered.get("a") == 3


async def test_who_asks_meanwhile_waits_for_the_same_answer() -> None:
    asked, go_on = 0, asyncio.Event()

    async def find(key: str) -> int:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return asked

    remembered = Remembered(find)
    waiting = [asyncio.create_task(remembered.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()

    assert await asyncio.gather(*waiting) == [1] * 5


async def test_who_asks_meanwhile_waits_though_the_answer_before_has_just_ended() -> None:
    now, at_once, most, go_on = 100.0, 0, 0, asyncio.Semaphore(0)

    def clock() -> float:  # every answer is old when it is looked at again
        nonlocal now
        now += 10
        return now

    async def find(key: str) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.acquire()
        at_once -= 1

    remembered = Remembered(find, clock=clock)
    waiting = [asyncio.create_task(remembered.get("a")) for _ in range(2)]
    await asyncio.sleep(0)
    go_on.release()
    waiting.append(asyncio.create_task(remembered.get("a")))  # comes before the second has gone on
    await asyncio.wait(waiting[:2])
    waiting.append(asyncio.create_task(remembered.get("a")))
    await asyncio.sleep(0)
    for _ in range(2):
        go_on.release()
    await asyncio.gather(*waiting)

    assert most == 1


async def test_answer_that_fails_is_asked_for_again() -> None:
    away = True

    async def find(key: str) -> str:
        if away:
            raise ConnectionError("gone")
        return "found"

    remembered = Remembered(find)
    with pytest.raises(ConnectionError):
        await remembered.get("a")
    away = False

    assert await remembered.get("a") == "found"


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


async def test_tenant_at_its_running_limit_is_told_so_once_a_trainer_offers_the_engine(world: World) -> None:
    await tenants.set_limits(world.database, "acme", running_limit=1)
    await world.running()
    waiting = await world.queued()

    async def reason() -> str | None:
        return (await Places(world.database).standing(waiting))[1]

    reasons = [await reason()]
    hello = trainers.Hello("trainer-1", "boot", "session", "gateway", [ENGINE], 1, device_memory_bytes=PLENTY)
    await trainers.connect(world.database, hello)
    reasons.append(await reason())
    await tenants.set_limits(world.database, "acme", running_limit=2)
    reasons.append(await reason())

    assert reasons == [
        f"no connected trainer offers {ENGINE}",
        "your 1 running tune is as many as may run",
        "it waits for a free trainer",
    ]


@pytest.mark.parametrize(
    ("running", "limit", "sentence"),
    [
        (1, 2, None),
        (2, 2, "your 2 running tunes are as many as may run"),
        (3, 2, "your 3 running tunes are as many as may run"),
        (0, 0, "none of your tunes may run"),
    ],
)
def test_limit_is_told_in_the_tenants_own_numbers(running: int, limit: int, sentence: str | None) -> None:
    assert limit_sentence(running, limit) == sentence

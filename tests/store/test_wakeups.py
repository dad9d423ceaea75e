"""Wake-ups: told after a commit, to everybody, once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from store.database import Database
from store.wakeups.base import BACKLOG
from store.wakeups.local import LocalWakeups
from store.wakeups.postgres import PostgresWakeups
from tests.servers.postgres import PostgresServer


@pytest.fixture
async def two(postgres_url: str) -> AsyncIterator[tuple[PostgresWakeups, PostgresWakeups]]:
    """Those of two gateways."""
    both = PostgresWakeups(postgres_url), PostgresWakeups(postgres_url)
    for each in both:
        await each.start()
    yield both
    for each in both:
        await each.close()


async def test_ids_are_told_once_however_often_they_come() -> None:
    wakeups = LocalWakeups()
    async with wakeups.subscribe("tune") as woken:
        for id in ("a", "b", "a"):
            wakeups.publish("tune", id)
        wakeups.publish("queue", "other")

        assert await woken.wait(0) == ["a", "b"]
        assert await woken.wait(0) == []


async def test_a_subscription_is_an_iterator_too() -> None:
    wakeups = LocalWakeups()
    woken = wakeups.subscribe("tune")
    wakeups.publish("tune", "a")
    wakeups.publish("tune", "b")

    assert [await anext(woken), await anext(woken)] == ["a", "b"]
    waiting = asyncio.create_task(anext(woken))
    await asyncio.sleep(0)
    wakeups.publish("tune", "c")
    assert await waiting == "c"
    woken.close()
    wakeups.publish("tune", "d")
    assert await woken.wait(0) == []


async def test_a_subscriber_that_sleeps_costs_bounded_memory() -> None:
    wakeups = LocalWakeups()
    async with wakeups.subscribe("tune") as woken:
        for number in range(BACKLOG + 10):
            wakeups.publish("tune", str(number))

        ids = await woken.wait(0)

    assert len(ids) == BACKLOG
    assert ids[-1] == str(BACKLOG + 9)


async def test_another_gateway_hears_of_it(two: tuple[PostgresWakeups, PostgresWakeups]) -> None:
    here, there = two
    async with there.subscribe("tune") as woken, here.subscribe("tune") as own:
        here.publish("tune", "a")

        assert await woken.wait(5.0) == ["a"]
        assert await own.wait(0) == ["a"]
        there.publish("tune", "b")
        assert await own.wait(5.0) == ["b"]


async def test_many_ids_travel_together(two: tuple[PostgresWakeups, PostgresWakeups]) -> None:
    here, there = two
    wanted = [f"tune_{number:026}" for number in range(2_000)]
    async with there.subscribe("tune") as woken, here.subscribe("tune") as own:
        for id in wanted:
            here.publish("tune", id)
        heard: list[str] = []
        async with asyncio.timeout(10):
            while len(heard) < len(wanted):
                heard += await woken.wait(1.0)

        assert heard == wanted
        assert len(await own.wait(0)) == len(wanted)  # its own come back from the server, and are not told again
        assert await own.wait(0) == []


async def test_what_cannot_be_read_is_passed_over(
    two: tuple[PostgresWakeups, PostgresWakeups], postgres_url: str
) -> None:
    here, there = two
    database = await Database.open(postgres_url, wakeups=False)
    async with there.subscribe("tune") as woken:
        async with database.write() as transaction:
            await transaction.connection.exec_driver_sql("SELECT pg_notify('tunesmith', 'nonsense')")
        here.publish("tune", "a")

        assert await woken.wait(5.0) == ["a"]
    await database.close()


async def test_wake_ups_come_back_after_an_outage() -> None:
    with PostgresServer() as server:
        here, there = PostgresWakeups(server.url), PostgresWakeups(server.url)
        await here.start()
        await there.start()
        server.restart(signal.SIGQUIT)

        async with there.subscribe("tune") as woken, asyncio.timeout(20):
            heard: list[str] = []
            while not heard:  # those told while either was away are lost, as they may be
                here.publish("tune", "a")
                heard = await woken.wait(0.2)

        assert heard == ["a"]
        await here.close()
        await there.close()


async def test_the_last_word_of_a_process_that_ends_is_told(two: tuple[PostgresWakeups, PostgresWakeups]) -> None:
    here, there = two
    async with there.subscribe("trainer") as woken:
        here.publish("trainer", "trainer-1")
        await here.close()

        assert await woken.wait(10.0) == ["trainer-1"]

"""Trainers as last heard."""

from __future__ import annotations

from dataclasses import replace

import pytest

from store import trainers
from store.database import Database
from store.errors import NotFound, StateForbids
from tests.store.world import ENGINE, World

HELLO = trainers.Hello("trainer-1", "boot-1", "session-1", "gateway-1", [ENGINE], 2, "GPU", 24 * 2**30, "0.1")


async def test_the_newest_hello_evicts_the_older_stream(database: Database) -> None:
    assert await trainers.connect(database, HELLO) is None
    async with database.wakeups.subscribe("trainer") as woken:
        evicted = await trainers.connect(database, replace(HELLO, session_id="session-2", gateway_id="gateway-2"))

        assert await woken.wait(1.0) == ["trainer-1"]
    assert evicted is not None
    assert (evicted.session_id, evicted.boot_id, evicted.gateway_id) == ("session-1", "boot-1", "gateway-1")
    assert not await trainers.seen(database, "trainer-1", "session-1", 1)
    assert await trainers.seen(database, "trainer-1", "session-2", 1)
    row = await trainers.current(database, "trainer-1")
    assert row is not None
    assert (row.session_id, row.free_slots, row.engines) == ("session-2", 1, [ENGINE])


async def test_a_hello_that_was_long_under_way_does_not_take_over(database: Database) -> None:
    await trainers.connect(database, replace(HELLO, session_id="session-2"))

    with pytest.raises(StateForbids):
        await trainers.connect(database, HELLO)

    assert await trainers.seen(database, "trainer-1", "session-2", 1)


async def test_another_process_takes_over_whatever_its_stream_is_called(database: Database) -> None:
    await trainers.connect(database, replace(HELLO, session_id="session-2"))

    evicted = await trainers.connect(database, replace(HELLO, boot_id="boot-0"))

    assert evicted is not None
    assert evicted.session_id == "session-2"


async def test_a_stream_that_has_ended_is_not_evicted(database: Database) -> None:
    await trainers.connect(database, HELLO)
    await trainers.disconnect(database, "trainer-1", "session-1")

    assert await trainers.connect(database, replace(HELLO, session_id="session-2")) is None
    await trainers.disconnect(database, "trainer-1", "session-1")  # the older one's end changes nothing
    assert [each.session_id for each in await trainers.list_connected(database)] == ["session-2"]


async def test_an_engine_is_offered_by_trainers_that_live(database: Database) -> None:
    await trainers.connect(database, HELLO)

    assert await trainers.offers_engine(database, ENGINE, 24)
    assert not await trainers.offers_engine(database, ENGINE, 25)
    assert not await trainers.offers_engine(database, "image/flux-dev")
    await database.move_clock(61)
    assert not await trainers.offers_engine(database, ENGINE)
    await trainers.seen(database, "trainer-1", "session-1", 1)
    assert await trainers.offers_engine(database, ENGINE)


async def test_a_drained_trainer_offers_nothing_until_it_is_resumed(database: Database) -> None:
    await trainers.connect(database, HELLO)

    await trainers.drain(database, "trainer-1", "a new disk")
    drained = await trainers.offers_engine(database, ENGINE)
    await trainers.resume(database, "trainer-1")
    resumed = await trainers.offers_engine(database, ENGINE)

    assert (drained, resumed) == (False, True)


async def test_a_drain_outlives_the_trainers_process(database: Database) -> None:
    await trainers.connect(database, HELLO)
    await trainers.drain(database, "trainer-1", "a new disk")
    await trainers.disconnect(database, "trainer-1", "session-1")

    await trainers.connect(database, replace(HELLO, boot_id="boot-2", session_id="session-2"))

    [row] = await trainers.find(database, ["trainer-1", "nobody"])
    assert (row.session_id, row.drain_reason) == ("session-2", "a new disk")


async def test_a_drain_and_its_end_wake_the_trainers_gateway(database: Database) -> None:
    await trainers.connect(database, HELLO)

    async with database.wakeups.subscribe("trainer") as woken:
        await trainers.drain(database, "trainer-1", "a new disk")
        drained = await woken.wait(1.0)
        await trainers.resume(database, "trainer-1")
        resumed = await woken.wait(1.0)

    assert drained == resumed == ["trainer-1"]


async def test_a_trainer_that_never_connected_cannot_be_drained(database: Database) -> None:
    with pytest.raises(NotFound, match="there is no trainer 'trainer-9'"):
        await trainers.drain(database, "trainer-9", "a new disk")

    with pytest.raises(NotFound, match="there is no trainer 'trainer-9'"):
        await trainers.resume(database, "trainer-9")


async def test_a_drain_without_a_reason_of_its_own_keeps_the_one_there_is(database: Database) -> None:
    await trainers.connect(database, HELLO)

    first = await trainers.drain(database, "trainer-1", "nothing said", keeps=True)
    await trainers.drain(database, "trainer-1", "a new disk")
    kept = await trainers.drain(database, "trainer-1", "nothing said", keeps=True)

    assert (first.drain_reason, kept.drain_reason) == ("nothing said", "a new disk")


@pytest.mark.parametrize("reason", ["", " ", "two\nlines", "x" * 201])
async def test_a_reason_fits_a_line(database: Database, reason: str) -> None:
    await trainers.connect(database, HELLO)

    with pytest.raises(ValueError, match="1 to 200 printable characters, not blanks alone, were wanted"):
        await trainers.drain(database, "trainer-1", reason)

    assert await trainers.offers_engine(database, ENGINE)


async def test_the_list_of_trainers_says_what_each_holds_and_how_long_it_was_silent(world: World) -> None:
    claim = await world.claimed()
    await trainers.connect(world.database, replace(HELLO, trainer_id=claim.lease.trainer_id))
    await trainers.connect(world.database, replace(HELLO, trainer_id="trainer-2"))
    await trainers.disconnect(world.database, "trainer-2", "session-1")
    await world.database.move_clock(10)

    first, second = await trainers.list_trainers(world.database)

    assert first.holds == [claim.lease.tune_id]
    assert (first.connected, second.connected) == (True, False)
    assert second.holds == []
    assert 10 <= first.silent.total_seconds() < 60

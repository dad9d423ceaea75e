"""Trainers as last heard."""

from __future__ import annotations

from dataclasses import replace

import pytest

from store import trainers
from store.database import Database
from store.errors import StateForbids
from tests.store.world import ENGINE

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

"""What a tune's owner can do with it."""

from __future__ import annotations

import pytest

from store import errors, keys, leases, tunes
from store.states import TuneState
from tests.store.world import ENGINE, World


async def test_a_tune_of_another_tenant_is_not_found(world: World) -> None:
    tune = await world.queued()
    other = await keys.create_tenant(world.database, "other")

    for ask in (tunes.find, tunes.cancel, tunes.delete):
        with pytest.raises(errors.NotFound):
            await ask(world.database, other.id, tune.id)


async def test_the_newest_come_first_and_pages_follow_one_another(world: World) -> None:
    made = []
    for _ in range(5):
        made.append((await world.queued()).id)
        await world.database.move_clock(1)

    first, total = await tunes.list_tunes(world.database, world.tenant.id, tunes.TuneFilter(limit=2))
    second, _ = await tunes.list_tunes(world.database, world.tenant.id, tunes.TuneFilter(limit=3, offset=2))

    assert total == 5
    assert [tune.id for tune in [*first, *second]] == made[::-1]


async def test_filters_must_all_hold(world: World) -> None:
    one = await world.queued(name="one", trigger_words=["a", "b"])
    await world.queued(name="two", trigger_words=["b"])

    async def found(**which: object) -> list[str]:
        rows, total = await tunes.list_tunes(world.database, world.tenant.id, tunes.TuneFilter(**which))  # type: ignore[arg-type]
        assert total == len(rows)
        return [tune.name for tune in rows]

    assert await found(name="one") == ["one"]
    assert await found(trigger_words=["b"]) == ["two", "one"]
    assert await found(trigger_words=["b", "a"]) == ["one"]
    assert await found(trigger_words=["c"]) == []
    assert await found(base_checkpoint=world.checkpoint.id, engine=ENGINE) == ["two", "one"]
    assert await found(base_checkpoint="tunesmith:tiny-shapes") == ["two", "one"]
    assert await found(engine="other") == []
    await tunes.delete(world.database, world.tenant.id, one.id)
    assert await found(name="one") == []


async def test_a_queued_tune_is_cancelled_at_once_and_never_claimed(world: World) -> None:
    tune = await world.queued()

    cancelled = await tunes.cancel(world.database, world.tenant.id, tune.id)

    assert cancelled.state is TuneState.CANCELLED
    assert cancelled.ended_at is not None
    assert await world.claim() is None
    again = await tunes.cancel(world.database, world.tenant.id, tune.id)
    assert again.model_dump() == cancelled.model_dump()


async def test_a_running_tune_is_asked_to_end_and_its_trainer_is_told_with_every_beat(world: World) -> None:
    claim = await world.running()
    async with world.database.wakeups.subscribe("cancel") as cancels:
        cancelled = await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

        assert await cancels.wait(1.0) == [claim.tune.id]
    assert cancelled.state is TuneState.RUNNING
    assert cancelled.cancel_requested_at is not None
    for _ in range(2):
        renewal = await leases.renew(world.database, "trainer-1", [claim.lease], 45.0)
        assert renewal.cancelled == [claim.lease]


async def test_a_deleted_tune_is_cancelled_and_hidden(world: World) -> None:
    tune = await world.queued()

    deleted = await tunes.delete(world.database, world.tenant.id, tune.id)

    assert deleted.state is TuneState.CANCELLED
    assert deleted.deleted_at is not None
    with pytest.raises(errors.NotFound):
        await world.tune(tune.id)
    with pytest.raises(errors.NotFound):
        await tunes.delete(world.database, world.tenant.id, tune.id)


async def test_a_place_in_the_queue_counts_priority_before_age(world: World) -> None:
    old, young = await world.queued(), await world.queued(priority=5)
    await world.claimed(priority=9)

    assert await tunes.queue_order(world.database, world.tenant.id) == [young.id, old.id]


async def test_the_queue_in_numbers(world: World) -> None:
    await world.running()
    await world.queued()
    await world.database.move_clock(10)

    stats = await tunes.queue_stats(world.database)

    assert stats.states == {"queued": 1, "assigned": 0, "running": 1}
    assert stats.queued == {ENGINE: 1}
    assert 10 <= stats.oldest_seconds[ENGINE] < 40

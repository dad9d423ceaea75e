"""Each tune's end is told once to whoever counts, by whichever path it comes, and only when it is committed."""

from __future__ import annotations

import pytest

from store import leases, reports, tunes
from store.reports import LoraResult
from tests.store.world import ENGINE, LEASE, World

LORA = LoraResult("loras/x", "c" * 64, 9, step=10, final_loss=0.1, pictures=1)


@pytest.fixture
def told(world: World) -> list[tuple[str, str]]:
    """What was told, in order."""
    ends: list[tuple[str, str]] = []
    world.database.tell_ended = lambda state, engine: ends.append((state, engine))
    return ends


async def test_tune_that_succeeds_is_told_once_though_its_report_comes_twice(
    world: World, told: list[tuple[str, str]]
) -> None:
    claim = await world.running()

    for _ in range(2):
        await reports.finish(world.database, claim.lease, 1, LORA)

    assert told == [("succeeded", ENGINE)]


async def test_tune_that_goes_back_to_the_queue_is_not_told_until_its_last_attempt(
    world: World, told: list[tuple[str, str]]
) -> None:
    await world.queued()
    told_after = []

    for _ in range(3):
        claim = await world.claim()
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        await reports.fail(world.database, claim.lease, 1, "CUDA", "It broke.", retryable=True, crashed=True)
        told_after.append(len(told))

    assert told_after == [0, 0, 1]
    assert told == [("failed", ENGINE)]


async def test_tune_that_loses_its_trainers_is_told_once(world: World, told: list[tuple[str, str]]) -> None:
    await world.queued()
    for attempt in range(3):
        claim = await world.claim(f"trainer-{attempt}")
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        await world.pass_time(LEASE + 1)

    assert await world.claim("trainer-9") is None

    assert told == [("failed", ENGINE)]


async def test_tune_without_pictures_is_told_when_it_is_refused(world: World, told: list[tuple[str, str]]) -> None:
    await tunes.submit(world.database, world.new_tune([await world.file(ready=False)]))

    assert await world.claim() is None

    assert told == [("failed", ENGINE)]


async def test_queued_tune_that_is_cancelled_or_deleted_is_told(world: World, told: list[tuple[str, str]]) -> None:
    cancelled, deleted = await world.queued(), await world.queued()

    await tunes.cancel(world.database, world.tenant.id, cancelled.id)
    await tunes.delete(world.database, world.tenant.id, deleted.id)
    await tunes.cancel(world.database, world.tenant.id, cancelled.id)

    assert told == [("cancelled", ENGINE)] * 2


async def test_running_tune_that_is_cancelled_is_told_when_its_trainer_has_stopped(
    world: World, told: list[tuple[str, str]]
) -> None:
    claim = await world.running()

    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)
    before = list(told)
    await reports.observe_cancel(world.database, claim.lease, 1, step=3)

    assert before == []
    assert told == [("cancelled", ENGINE)]


async def test_cancelled_tune_whose_trainer_is_gone_is_told_by_the_reaper(
    world: World, told: list[tuple[str, str]]
) -> None:
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

    await world.pass_time(LEASE + 5)

    assert told == [("cancelled", ENGINE)]


async def test_end_that_is_rolled_back_is_not_told(world: World, told: list[tuple[str, str]]) -> None:
    tune = await world.queued()

    async def broken() -> None:
        async with world.database.write() as transaction:
            await tunes._cancel(transaction, tune)
            raise LookupError("something breaks before the commit")

    with pytest.raises(LookupError):
        await broken()

    assert told == []
    assert (await world.tune(tune.id)).state == "queued"

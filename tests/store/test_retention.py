"""What age takes, and what it leaves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from store import assets, events, keys, leases, reports, retention, tunes
from store.retention import thin
from store.tables import Asset, record
from store.tables import assets as assets_table
from tests.store.world import World

DAY = 86400.0


async def ended(world: World, *chunks: range) -> str:
    """A tune that has told these steps, and succeeded."""
    claim = await world.running()
    for chunk in chunks:
        metrics = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4, "steps_per_second": 9.0} for step in chunk]
        await reports.record_progress(world.database, claim.lease, "training", chunk[-1], metrics)
    await reports.finish(world.database, claim.lease, 1, reports.LoraResult("k", "a" * 64, 5, 10, 0.5, 1))
    return claim.tune.id


async def told_steps(world: World, tune_id: str) -> list[list[int]]:
    """The steps of each metrics event."""
    log = await events.list_events(world.database, tune_id)
    return [[step["step"] for step in event.body["steps"]] for event in log if event.kind == "metrics"]


async def object_key(world: World, asset_id: str) -> str | None:
    async with world.database.read() as connection:
        row = (await connection.execute(select(assets_table).where(assets_table.c.id == asset_id))).one()
    return record(Asset, row).object_key


async def test_metrics_of_a_tune_that_ended_long_ago_keep_each_tenth_step_and_each_events_last(world: World) -> None:
    tune_id = await ended(world, range(1, 16), range(16, 19), range(19, 42))
    before = await events.list_events(world.database, tune_id)

    await world.database.move_clock(31 * DAY)
    thinned = await retention.thin_metrics(world.database, 30 * DAY)

    assert thinned == 1
    assert await told_steps(world, tune_id) == [[10, 15], [18], [20, 30, 40, 41]]
    after = await events.list_events(world.database, tune_id)
    assert [(event.seq, event.kind, event.created_at) for event in after] == [
        (event.seq, event.kind, event.created_at) for event in before
    ]
    assert await retention.thin_metrics(world.database, 30 * DAY) == 0, "it is done once"


async def test_a_watcher_resumes_by_the_seq_that_it_had_seen_before_the_thinning(world: World) -> None:
    tune_id = await ended(world, range(1, 4), range(4, 7))
    log = await events.list_events(world.database, tune_id)
    seen = next(event.seq for event in log if event.kind == "metrics")

    await retention.thin_metrics(world.database, 0)

    rest = await events.list_events(world.database, tune_id, after_seq=seen)
    assert [event.seq for event in rest] == [event.seq for event in log if event.seq > seen]


async def test_metrics_of_young_and_of_unended_tunes_stand_as_they_came(world: World) -> None:
    old = await ended(world, range(1, 6))
    running = await world.running()
    metrics = [{"step": step} for step in range(1, 6)]
    await reports.record_progress(world.database, running.lease, "training", 5, metrics)
    await world.database.move_clock(20 * DAY)
    young = await ended(world, range(1, 6))
    await world.database.move_clock(11 * DAY)

    thinned = [await retention.thin_metrics(world.database, 30 * DAY) for _ in range(2)]

    assert thinned == [1, 0]
    assert await told_steps(world, old) == [[5]]
    assert await told_steps(world, young) == await told_steps(world, running.tune.id) == [[1, 2, 3, 4, 5]]


async def test_a_long_log_is_thinned_in_several_transactions_by_gateways_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHUNKS", 2)
    monkeypatch.setattr(retention, "_CHUNKS", retention._CHUNKS.limit(2))
    tune_ids = [await ended(world, *(range(start, start + 3) for start in range(1, 22, 3))) for _ in range(4)]

    async def all_of_it() -> int:
        count = 0
        while await retention.thin_metrics(world.database, 0):
            count += 1
        return count

    counts = await asyncio.gather(*(all_of_it() for _ in range(3)))

    assert sum(counts) >= 4
    for tune_id in tune_ids:
        assert await told_steps(world, tune_id) == [[3], [6], [9], [10, 12], [15], [18], [20, 21]]


@pytest.mark.parametrize("steps", [[], [7], [1, 2, 3], [9, 10, 11], [10, 20], list(range(1, 100))])
def test_thinning_again_changes_nothing(steps: list[int]) -> None:
    once = thin([{"step": step} for step in steps])

    assert thin(once) == once
    assert [step["step"] for step in once][-1:] == steps[-1:]


async def test_bytes_of_an_asset_deleted_long_ago_are_given_up_and_its_row_stays(world: World) -> None:
    old, living = await world.file(), await world.file()
    await assets.delete(world.database, world.tenant.id, old.id)
    await world.database.move_clock(8 * DAY)
    young = await world.file()
    await assets.delete(world.database, world.tenant.id, young.id)

    released = [await retention.release_assets(world.database, 7 * DAY) for _ in range(2)]

    assert released == [1, 0]
    assert await object_key(world, old.id) is None
    assert await object_key(world, young.id) is not None
    assert await object_key(world, living.id) is not None


async def test_bytes_that_a_tune_may_still_read_are_kept_until_it_has_ended(world: World) -> None:
    file = await world.file()
    await tunes.submit(world.database, world.new_tune([file]))
    claim = await world.claim()
    assert claim is not None
    await leases.accept(world.database, claim.lease)
    await reports.give_back(world.database, claim.lease, 1, 0)
    await assets.delete(world.database, world.tenant.id, file.id)
    await world.database.move_clock(8 * DAY)

    while_queued = await retention.release_assets(world.database, 7 * DAY)
    again = await world.claim()
    assert again is not None
    while_leased = await retention.release_assets(world.database, 7 * DAY)
    await reports.fail(world.database, again.lease, 1, "DIVERGED", "NaN.", retryable=False, crashed=False)

    assert [id for id, _ in again.tune.files] == [file.id]
    assert (while_queued, while_leased) == (0, 0)
    assert await retention.release_assets(world.database, 7 * DAY) == 1


async def test_public_checkpoint_is_kept_for_another_tenants_tune(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    checkpoint = await public_checkpoint(world, other.id)
    await world.queued(checkpoint_ref=checkpoint.id)
    await assets.delete(world.database, other.id, checkpoint.id)
    await world.database.move_clock(8 * DAY)

    while_queued = await retention.release_assets(world.database, 7 * DAY)
    claim = await world.claim()
    assert claim is not None
    await reports.fail(world.database, claim.lease, 1, "DIVERGED", "NaN.", retryable=False, crashed=False)

    assert while_queued == 0
    assert await retention.release_assets(world.database, 7 * DAY) == 1


async def public_checkpoint(world: World, owner: str) -> Asset:
    new = assets.NewAsset(owner, "checkpoint", "base", data={"engine": world.checkpoint.engine}, is_public=True)
    made = await assets.create(world.database, new)
    return await assets.complete(
        world.database, owner, made.id, size_bytes=9, sha256="b" * 64, object_key=f"assets/{made.id}/{'b' * 64}"
    )


async def test_keys_that_ended_long_ago_are_erased_and_others_stay(world: World) -> None:
    now = datetime.now(UTC)
    ends: dict[str, Any] = {"expired": now + timedelta(days=1), "lately": now + timedelta(days=30), "never": None}
    for name, expires_at in ends.items():
        await keys.create_key(world.database, world.tenant.id, name, expires_at=expires_at)
    revoked, _ = await keys.create_key(world.database, world.tenant.id, "revoked")
    await keys.revoke(world.database, revoked.id)

    await world.database.move_clock(35 * DAY)
    erased = [await retention.forget_keys(world.database, 10 * DAY) for _ in range(2)]

    assert erased == [2, 0]
    assert {each.key.name for each in await keys.list_keys(world.database, "acme")} == {"lately", "never"}

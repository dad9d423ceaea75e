"""How long a tune would take is told by the tenant's own tunes that succeeded."""

from __future__ import annotations

from typing import Any

import pytest

from store import assets, keys, reports, tunes
from store.estimates import estimate
from store.reports import LoraResult
from store.tables import Tune
from tests.store.world import World


async def succeeded(world: World, *, speed: float | None, seconds: float, steps: int = 10, **changes: Any) -> None:
    """A tune that stepped at that speed, and took so long from its claim to its end."""
    claim = await world.running(steps=steps, **changes)
    step = {"step": steps, "loss": 0.1, "learning_rate": 1e-4, "steps_per_second": speed}
    await reports.record_progress(world.database, claim.lease, "training", steps, [step])
    await world.database.move_clock(seconds)
    lora = LoraResult("loras/x", "c" * 64, 9, step=steps, final_loss=0.1, pictures=1)
    await reports.finish(world.database, claim.lease, 1, lora)


async def asked(world: World, steps: int = 100, **changes: Any) -> Tune:
    return await tunes.check(world.database, world.new_tune([await world.file()], steps=steps, **changes))


async def test_a_tenant_without_tunes_is_told_nothing(world: World) -> None:
    await world.queued()

    assert await estimate(world.database, await asked(world)) is None


async def test_time_is_the_steps_at_the_median_speed_and_the_median_of_what_else_there_was(world: World) -> None:
    for speed, seconds in ((2.0, 9.0), (5.0, 10.0), (10.0, 3.0)):  # besides their ten steps: 4, 8 and 2 seconds
        await succeeded(world, speed=speed, seconds=seconds)

    found = await estimate(world.database, await asked(world, steps=100))

    assert found is not None
    assert (found.steps_per_second, found.tunes) == (5.0, 3)
    assert found.seconds == pytest.approx(100 / 5 + 4, abs=0.5)


async def test_only_what_succeeded_and_said_its_speed_tells(world: World) -> None:
    await succeeded(world, speed=None, seconds=5.0)
    failed = await world.running()
    step = {"step": 1, "loss": 0.1, "learning_rate": 1e-4, "steps_per_second": 7.0}
    await reports.record_progress(world.database, failed.lease, "training", 1, [step])
    await reports.fail(world.database, failed.lease, 1, "BROKEN", "It broke.", retryable=False, crashed=False)

    assert await estimate(world.database, await asked(world)) is None


async def test_what_others_had_is_not_told(world: World) -> None:
    await succeeded(world, speed=5.0, seconds=5.0)
    other = await keys.create_tenant(world.database, "other")
    theirs = world.new_tune([await world.file(tenant=other)], tenant_id=other.id)

    assert await estimate(world.database, await tunes.check(world.database, theirs)) is None


async def test_the_same_checkpoint_tells_more_than_another_of_the_engine(world: World) -> None:
    await succeeded(world, speed=5.0, seconds=5.0)
    await mine(world, "mine")
    by_engine = await estimate(world.database, await asked(world, checkpoint_ref="mine"))
    await succeeded(world, speed=50.0, seconds=5.0, checkpoint_ref="mine")

    by_checkpoint = await estimate(world.database, await asked(world, checkpoint_ref="mine"))

    assert by_engine is not None
    assert by_checkpoint is not None
    assert (by_engine.steps_per_second, by_checkpoint.steps_per_second) == (5.0, 50.0)


async def test_old_tunes_make_room_for_newer_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.estimates.MOST", 2)
    for speed in (1.0, 5.0, 5.0):
        await succeeded(world, speed=speed, seconds=20.0)

    found = await estimate(world.database, await asked(world))

    assert found is not None
    assert (found.steps_per_second, found.tunes) == (5.0, 2)
    assert found.seconds == pytest.approx(100 / 5 + 18, abs=0.5)


async def mine(world: World, name: str) -> None:
    """A checkpoint of the tenant's own, for the same engine."""
    data = {"engine": world.checkpoint.engine}
    made = await assets.create(world.database, assets.NewAsset(world.tenant.id, "checkpoint", name, data=data))
    key = f"assets/{made.id}/{'b' * 64}"
    await assets.complete(
        world.database, world.tenant.id, made.id, size_bytes=9, sha256="b" * 64, object_key=key, data=data
    )

"""What is recorded of an attempt, once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from sqlalchemy import func, select

from store import assets, events, leases, reports, tunes
from store.database import Database
from store.leases import LeaseRef, Snapshot
from store.reports import LoraResult, Outcome
from store.states import TuneState
from store.tables import assets as assets_table
from tests.store.world import LEASE, World

RESULT = LoraResult("loras/x/y.safetensors", "c" * 64, 1234, step=10, final_loss=0.25, pictures=1)


async def test_a_finished_tune_has_one_lora(world: World) -> None:
    claim = await world.running()

    outcome, asset_id = await reports.finish(world.database, claim.lease, 1, RESULT)

    assert outcome is Outcome.RECORDED
    assert asset_id == tunes.lora_asset_id(claim.tune.id)
    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.output_lora_ids, tune.step) == (TuneState.SUCCEEDED, [asset_id], 10)
    assert tune.succeeded_at is not None
    lora = await assets.find(world.database, world.tenant.id, tune.name)
    assert (lora.id, lora.asset_type, lora.status, lora.sha256) == (asset_id, "lora", "ready", "c" * 64)
    assert lora.data["checkpoint"] == world.checkpoint.id
    assert lora.data["trigger_words"] == ["sks"]


async def test_a_result_that_is_sent_twice_is_recorded_once(world: World) -> None:
    claim = await world.running()
    _, asset_id = await reports.finish(world.database, claim.lease, 1, RESULT)

    assert await reports.finish(world.database, claim.lease, 1, RESULT) == (Outcome.ALREADY_RECORDED, asset_id)

    async with world.database.read() as connection:
        loras = select(func.count()).where(assets_table.c.asset_type == "lora")
        assert (await connection.execute(loras)).scalar_one() == 1


async def test_a_result_of_a_lost_lease_is_stale(world: World) -> None:
    claim = await world.running()
    await world.pass_time(LEASE + 1)
    again = await world.claim("trainer-2")
    assert again is not None

    assert await reports.finish(world.database, claim.lease, 1, RESULT) == (Outcome.STALE, None)
    assert (await reports.finish(world.database, again.lease, 1, RESULT))[0] is Outcome.RECORDED


async def test_a_result_after_the_lease_has_ended_counts_where_nobody_has_claimed_it(world: World) -> None:
    claim = await world.running()
    await world.pass_time(3 * LEASE)

    assert (await reports.finish(world.database, claim.lease, 1, RESULT))[0] is Outcome.RECORDED


async def test_a_cancel_that_commits_first_wins(world: World) -> None:
    """Cancel races completion: the first commit wins."""
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

    assert await reports.finish(world.database, claim.lease, 1, RESULT) == (Outcome.RECORDED, None)
    assert (await world.tune(claim.tune.id)).state is TuneState.CANCELLED


async def test_a_result_that_commits_first_wins(world: World) -> None:
    claim = await world.running()
    await reports.finish(world.database, claim.lease, 1, RESULT)

    tune = await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

    assert tune.state is TuneState.SUCCEEDED
    assert tune.cancel_requested_at is None


@pytest.mark.parametrize("crashed", [True, False])
async def test_a_retryable_failure_goes_back_and_three_of_them_end_it(world: World, crashed: bool) -> None:
    tune = await world.queued()
    for attempt in range(3):
        claim = await world.claim()
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        outcome = await reports.fail(
            world.database, claim.lease, 1, "ENGINE_DIED", f"Signal {attempt}.", retryable=True, crashed=crashed
        )
        assert outcome is Outcome.RECORDED

    failed = await world.tune(tune.id)
    assert failed.state is TuneState.FAILED
    assert failed.status_details.startswith("Signal 2.")


async def test_a_failure_that_no_retry_mends_ends_it_with_its_reason(world: World) -> None:
    claim = await world.running()

    await reports.fail(world.database, claim.lease, 1, "REJECTED_PICTURES", "All bad.", retryable=False, crashed=False)

    failed = await world.tune(claim.tune.id)
    assert (failed.state, failed.status_details) == (TuneState.FAILED, "All bad.")
    log = await events.list_events(world.database, claim.tune.id)
    assert log[-1].body == {"status": "failed", "details": "All bad.", "reason": "REJECTED_PICTURES", "attempt": 1}
    again = await reports.fail(world.database, claim.lease, 1, "X", "x", retryable=True, crashed=True)
    assert again is Outcome.ALREADY_RECORDED


async def test_a_failure_of_a_cancelled_tune_is_a_cancellation(world: World) -> None:
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

    await reports.fail(world.database, claim.lease, 1, "ENGINE_DIED", "x", retryable=True, crashed=True)

    assert (await world.tune(claim.tune.id)).state is TuneState.CANCELLED


async def test_an_observed_cancel_ends_it(world: World) -> None:
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)

    assert await reports.observe_cancel(world.database, claim.lease, 1, 4) is Outcome.RECORDED

    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.step) == (TuneState.CANCELLED, 4)


async def test_a_tune_that_is_given_back_costs_no_attempt(world: World) -> None:
    claim = await world.running()

    assert await reports.give_back(world.database, claim.lease, 1, 4) is Outcome.RECORDED
    assert await reports.give_back(world.database, claim.lease, 1, 4) is Outcome.ALREADY_RECORDED

    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.attempts, tune.crashes) == (TuneState.QUEUED, 0, 0)


async def test_reports_are_recorded_once_and_in_order(world: World) -> None:
    claim = await world.running()
    body = {"reason": "CAPTION_CUT", "details": "x"}

    assert await reports.record_event(world.database, claim.lease, 1, "warning", body) is Outcome.RECORDED
    assert await reports.record_event(world.database, claim.lease, 2, "warning", body) is Outcome.RECORDED
    assert await reports.record_event(world.database, claim.lease, 1, "warning", body) is Outcome.ALREADY_RECORDED

    log = await events.list_events(world.database, claim.tune.id)
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    assert [event.kind for event in log].count("warning") == 2
    assert [event.seq for event in await events.list_events(world.database, claim.tune.id, after_seq=3)] == [4, 5]


async def test_a_new_attempt_counts_its_reports_from_one(world: World) -> None:
    claim = await world.running()
    await reports.record_event(world.database, claim.lease, 1, "warning", {"reason": "X", "details": ""})
    await reports.give_back(world.database, claim.lease, 2, 0)
    again = await world.claim("trainer-2")
    assert again is not None

    body = {"reason": "X", "details": ""}
    assert await reports.record_event(world.database, again.lease, 1, "warning", body) is Outcome.RECORDED


async def test_a_refused_picture_goes_into_the_result(world: World) -> None:
    files = [await world.file(), await world.file()]
    await tunes.submit(world.database, world.new_tune(files, continue_on_rejection=True))
    claim = await world.claim()
    assert claim is not None
    verdict = {"file_id": files[1].id, "accepted": False, "reason": "TRUNCATED", "details": "x"}

    await reports.record_event(world.database, claim.lease, 1, "verdict", verdict)
    await reports.record_event(world.database, claim.lease, 2, "verdict", {**verdict, "accepted": True})

    tune = await world.tune(claim.tune.id)
    assert (tune.available, tune.rejected) == (1, [files[1].id])
    assert tune.status_details == f"Goes on without {files[1].id}: x."


async def test_the_first_resolved_recipe_stays_byte_for_byte(world: World) -> None:
    claim = await world.running()
    recipe = '{"a":1e-4,"b":[1.0],"z":"é"}'

    await reports.record_recipe(world.database, claim.lease, 1, recipe, "d" * 64)
    await reports.record_recipe(world.database, claim.lease, 2, "{}", "e" * 64)

    tune = await world.tune(claim.tune.id)
    assert (tune.resolved_recipe, tune.resolved_recipe_sha256) == (recipe, "d" * 64)
    log = await events.list_events(world.database, claim.tune.id)
    assert [event.body["recipe"] for event in log if event.kind == "recipe_resolved"] == [json.loads(recipe)]


async def test_an_older_snapshot_changes_nothing(world: World) -> None:
    claim = await world.running()
    await reports.record_snapshot(world.database, claim.lease, 1, Snapshot("k5", 5, "b" * 64, 9))

    await reports.record_snapshot(world.database, claim.lease, 2, Snapshot("k3", 3, "b" * 64, 9))

    assert (await world.tune(claim.tune.id)).snapshot_key == "k5"


async def test_two_snapshots_are_kept_and_the_one_that_falls_out_is_told(world: World) -> None:
    claim = await world.running()
    needless = []

    for seq, step in enumerate((5, 6, 7, 6), 1):
        snapshot = Snapshot(f"k{step}-{seq}", step, "b" * 64, 9)
        needless.append(await reports.record_snapshot(world.database, claim.lease, seq, snapshot))

    assert needless == [(Outcome.RECORDED, key) for key in (None, None, "k5-1", "k6-4")]
    tune = await world.tune(claim.tune.id)
    assert (tune.snapshot_key, tune.earlier_snapshot) == ("k7-3", asdict(Snapshot("k6-2", 6, "b" * 64, 9)))


async def test_a_snapshot_that_is_reported_once_more_is_not_told_as_needless(world: World) -> None:
    claim = await world.running()
    kept = [Snapshot(f"k{step}", step, "b" * 64, 9) for step in (5, 6)]
    for seq, snapshot in enumerate(kept, 1):
        await reports.record_snapshot(world.database, claim.lease, seq, snapshot)

    again = [await reports.record_snapshot(world.database, claim.lease, seq, each) for seq, each in enumerate(kept, 3)]

    assert again == [(Outcome.RECORDED, None)] * 2


async def test_a_refused_snapshot_gives_way_to_the_one_before_it_and_is_no_crash(world: World) -> None:
    claim = await world.running()
    for seq, step in enumerate((5, 6), 1):
        await reports.record_snapshot(world.database, claim.lease, seq, Snapshot(f"k{step}", step, "b" * 64, 9))
    await reports.give_back(world.database, claim.lease, 3, 6)
    steps = []

    for _ in range(3):
        again = await world.claim()
        assert again is not None
        await leases.accept(world.database, again.lease)
        steps.append((again.snapshot.step if again.snapshot else None, again.tune.step, again.tune.crashes))
        await refuse_snapshot(world, again.lease)

    assert steps == [(6, 6, 0), (5, 5, 0), (None, 0, 0)]
    assert (await world.tune(claim.tune.id)).crashes == 1  # the last one had nothing to refuse


async def test_a_trainer_that_refuses_for_ever_does_not_go_round_for_ever(world: World) -> None:
    tune = (await world.running()).tune
    await refuse_snapshot(world, LeaseRef(tune.id, 1, "trainer-1"))

    for _ in range(2):
        again = await world.claim()
        assert again is not None
        await leases.accept(world.database, again.lease)
        await refuse_snapshot(world, again.lease)

    assert (await world.tune(tune.id)).state is TuneState.FAILED


async def refuse_snapshot(world: World, lease: LeaseRef) -> None:
    await reports.fail(world.database, lease, 1, "SNAPSHOT_REFUSED", "a byte differs", retryable=True, crashed=False)


async def test_progress_is_kept_and_its_steps_never_fall(world: World) -> None:
    claim = await world.running()
    steps = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4, "steps_per_second": 2.0} for step in (1, 2)]

    await reports.record_progress(world.database, claim.lease, "training", 2, steps)
    await reports.record_progress(world.database, claim.lease, "training", 1)

    tune = await world.tune(claim.tune.id)
    assert (tune.phase, tune.step, tune.loss, tune.steps_per_second) == ("training", 2, 0.5, 2.0)
    log = await events.list_events(world.database, claim.tune.id)
    assert log[-1].body == {"steps": [{**step, "epoch": 1} for step in steps]}


async def test_a_result_with_fewer_steps_than_were_told_lets_none_fall(world: World) -> None:
    claim = await world.running()
    await reports.record_progress(world.database, claim.lease, "training", 9)

    await reports.finish(world.database, claim.lease, 1, replace(RESULT, step=8))

    assert (await world.tune(claim.tune.id)).step == 9


async def test_a_watcher_is_woken_by_each_event(database: Database, world: World) -> None:
    claim = await world.running()
    async with database.wakeups.subscribe("tune") as woken:
        await reports.record_event(database, claim.lease, 1, "warning", {"reason": "X", "details": ""})

        assert await woken.wait(1.0) == [claim.tune.id]


async def test_a_lease_that_never_was_is_stale(world: World) -> None:
    nobody = LeaseRef("tune_none", 1, "trainer-1")

    assert await reports.give_back(world.database, nobody, 1, 0) is Outcome.STALE
    with pytest.raises(AssertionError):
        await reports.record_event(world.database, nobody, 1, "gossip", {})


async def test_metrics_that_come_twice_or_late_are_told_once_and_in_order(world: World) -> None:
    claim = await world.running()
    told = [{"step": step, "loss": 0.5} for step in range(1, 7)]
    await reports.record_progress(world.database, claim.lease, "training", 2, told[:2])

    await reports.record_progress(world.database, claim.lease, "training", 4, told[:4])  # the first commit seemed lost
    await reports.record_snapshot(world.database, claim.lease, 1, Snapshot("snapshots/x", 6, "d" * 64, 9))
    await reports.record_progress(world.database, claim.lease, "training", 3, told[2:3])  # of a gateway that hung
    await reports.record_progress(world.database, claim.lease, "training", 6, told[4:])

    log = await events.list_events(world.database, claim.tune.id)
    steps = [[each["step"] for each in entry.body["steps"]] for entry in log if entry.kind == "metrics"]
    assert steps == [[1, 2], [3, 4], [5, 6]]

"""Who holds a tune, for how long, and what its end does."""

from __future__ import annotations

import dataclasses

import pytest

from store import events, leases, reports, trainers, tunes
from store.database import Database
from store.errors import StateForbids
from store.leases import Held, HeldAction
from store.reports import Outcome
from store.states import TuneState
from tests.store.world import ENGINE, LEASE, World


async def test_an_accepted_tune_runs(world: World) -> None:
    claim = await world.claimed()

    assert await leases.accept(world.database, claim.lease)

    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.attempts) == (TuneState.RUNNING, 1)
    assert await leases.accept(world.database, claim.lease)  # sent twice
    assert (await world.tune(claim.tune.id)).attempts == 1


async def test_a_withdrawn_assignment_goes_back_and_costs_nothing(world: World) -> None:
    claim = await world.claimed()

    assert await leases.withdraw(world.database, claim.lease, "NO_FREE_SLOT")

    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.attempts, tune.crashes) == (TuneState.QUEUED, 0, 0)
    assert not await leases.accept(world.database, claim.lease)
    again = await world.claim()
    assert again is not None
    assert again.lease.epoch == 2


async def test_an_accepted_assignment_is_not_withdrawn(world: World) -> None:
    claim = await world.running()

    assert not await leases.withdraw(world.database, claim.lease, "NOT_ACCEPTED")
    assert (await world.tune(claim.tune.id)).state is TuneState.RUNNING


async def test_a_beat_keeps_the_lease(world: World) -> None:
    claim = await world.running()
    for _ in range(3):
        await world.pass_time(LEASE - 5)
        renewal = await leases.renew(world.database, "trainer-1", [claim.lease], LEASE)
        assert renewal == leases.Renewal([claim.lease], [], [])

    assert await world.claim("trainer-2") is None


async def test_a_lease_whose_time_is_up_goes_on_where_nobody_has_claimed_it(world: World) -> None:
    claim = await world.running()
    await world.pass_time(2 * LEASE)
    assert (await world.tune(claim.tune.id)).state is TuneState.RUNNING  # the end writes nothing

    renewal = await leases.renew(world.database, "trainer-1", [claim.lease], LEASE)

    assert renewal.extended == [claim.lease]
    assert await world.claim("trainer-2") is None


async def test_another_trainer_goes_on_from_the_snapshot_when_the_lease_has_ended(world: World) -> None:
    claim = await world.running()
    snapshot = leases.Snapshot("incoming/x", 5, "b" * 64, 9)
    await reports.record_snapshot(world.database, claim.lease, 1, snapshot)
    await reports.record_progress(world.database, claim.lease, "training", 7)
    await world.pass_time(LEASE + 1)

    again = await world.claim("trainer-2")

    assert again is not None
    assert (again.tune.id, again.lease.epoch, again.snapshot) == (claim.tune.id, 2, snapshot)
    assert again.tune.step == 5
    lost = await leases.renew(world.database, "trainer-1", [claim.lease], LEASE)
    assert lost.lost == [claim.lease]
    assert await reports.fail(world.database, claim.lease, 2, "X", "x", retryable=False, crashed=True) is Outcome.STALE
    log = await events.list_events(world.database, claim.tune.id)
    assert [event.body.get("reason") for event in log][-2:] == ["LEASE_ENDED", "ASSIGNED"]


async def test_a_lease_is_known_by_its_epoch_and_its_trainer(world: World) -> None:
    claim = await world.running()
    impostor = dataclasses.replace(claim.lease, trainer_id="trainer-2")
    older = dataclasses.replace(claim.lease, epoch=0)

    for wrong in (impostor, older):
        assert await leases.is_current(world.database, wrong) is None
        assert not await leases.accept(world.database, wrong)
        assert not await reports.record_progress(world.database, wrong, "training", 1)
        assert (await leases.renew(world.database, wrong.trainer_id, [wrong], LEASE)).lost == [wrong]
    current = await leases.is_current(world.database, claim.lease)
    assert current is not None
    assert current.id == claim.tune.id


async def test_hello_that_a_newer_one_has_overtaken_ends_nothing(world: World) -> None:
    for number in (1, 2):
        hello = trainers.Hello("trainer-1", "boot-1", f"session-{number}", "gateway-1", [ENGINE], 1)
        await trainers.connect(world.database, hello)
    given_since = await world.running()

    with pytest.raises(StateForbids):
        await leases.restate(world.database, "trainer-1", [], LEASE, session_id="session-1")

    assert await leases.is_current(world.database, given_since.lease) is not None
    assert await leases.restate(world.database, "trainer-1", [], LEASE, session_id="session-2") == {}
    assert await leases.is_current(world.database, given_since.lease) is None


async def test_hello_says_what_becomes_of_each_attempt(world: World) -> None:
    goes_on, has_result, forgotten = [await world.running() for _ in range(3)]
    unknown = leases.LeaseRef("tune_none", 1, "trainer-1")

    actions = await leases.restate(
        world.database,
        "trainer-1",
        [Held(goes_on.lease), Held(has_result.lease, result_pending=True), Held(unknown)],
        LEASE,
    )

    assert actions == {
        goes_on.lease: HeldAction.CONTINUE,
        has_result.lease: HeldAction.SEND_RESULT,
        unknown: HeldAction.ABORT,
    }
    ended = await world.tune(forgotten.tune.id)
    assert (ended.state, ended.crashes) == (TuneState.QUEUED, 1)
    assert await leases.restate(world.database, "trainer-1", [Held(forgotten.lease)], LEASE) == {
        forgotten.lease: HeldAction.ABORT
    }


async def test_a_tune_that_fell_with_its_gateway_is_not_blamed(world: World) -> None:
    claim = await world.running()
    await world.pass_time(10)

    await leases.restate(world.database, "trainer-1", [], LEASE, uptime_seconds=2)

    tune = await world.tune(claim.tune.id)
    assert (tune.state, tune.crashes, tune.attempts) == (TuneState.QUEUED, 0, 1)


async def test_hello_takes_up_an_attempt_whose_lease_has_ended(world: World) -> None:
    claim = await world.running()
    await world.pass_time(2 * LEASE)

    actions = await leases.restate(world.database, "trainer-1", [Held(claim.lease)], LEASE)

    assert actions == {claim.lease: HeldAction.CONTINUE}
    assert await world.claim("trainer-2") is None


async def test_three_lost_trainers_fail_the_tune(world: World) -> None:
    tune = await world.queued()
    for attempt in range(3):
        claim = await world.claim(f"trainer-{attempt}")
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        await world.pass_time(LEASE + 1)

    assert await world.claim("trainer-9") is None
    failed = await world.tune(tune.id)
    assert (failed.state, failed.attempts, failed.crashes) == (TuneState.FAILED, 3, 3)
    assert "3 attempts" in failed.status_details


async def test_a_newer_snapshot_forgives_the_crashes_before_it(world: World) -> None:
    await world.queued()
    for attempt in range(5):
        claim = await world.claim(f"trainer-{attempt}")
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        snapshot = leases.Snapshot(f"incoming/{attempt}", attempt + 1, "b" * 64, 9)
        await reports.record_snapshot(world.database, claim.lease, 1, snapshot)
        await world.pass_time(LEASE + 1)

    claim = await world.claim("trainer-9")

    assert claim is not None
    assert claim.snapshot is not None
    assert claim.snapshot.step == 5


async def test_an_assignment_that_nobody_accepted_is_no_crash(world: World) -> None:
    await world.queued()
    for attempt in range(5):
        claim = await world.claim(f"trainer-{attempt}")
        assert claim is not None
        assert (claim.tune.attempts, claim.tune.crashes) == (0, 0)
        await world.pass_time(LEASE + 1)


async def test_the_reaper_ends_a_cancelled_tune_whose_trainer_is_gone(world: World) -> None:
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)
    await world.pass_time(LEASE - 5)
    assert (await world.tune(claim.tune.id)).state is TuneState.RUNNING

    await world.pass_time(10)

    assert (await world.tune(claim.tune.id)).state is TuneState.CANCELLED


async def test_nothing_expires_for_an_outage_of_ours(world: World) -> None:
    claim = await world.running()
    await world.database.move_clock(10 * LEASE)  # nobody reaped meanwhile: no gateway, or no database

    assert await world.claim("trainer-2") is None
    await leases.reap(world.database, LEASE)
    await world.pass_time(LEASE - 6)
    assert await world.claim("trainer-2") is None
    assert (await leases.renew(world.database, "trainer-1", [claim.lease], LEASE)).extended == [claim.lease]
    await world.pass_time(LEASE + 6)
    assert await world.claim("trainer-2") is not None


async def test_a_cancelled_tune_never_runs_again(world: World) -> None:
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)
    await world.pass_time(LEASE - 1)
    await world.database.move_clock(3)

    assert await world.claim("trainer-2") is None  # it ends what it finds, before the reaper does
    assert (await world.tune(claim.tune.id)).state is TuneState.CANCELLED


async def test_wake_ups_tell_of_what_may_be_claimed(database: Database, world: World) -> None:
    async with database.wakeups.subscribe("queue") as queue:
        claim = await world.claimed()
        assert await queue.wait(1.0) == [claim.tune.engine]

        await leases.withdraw(database, claim.lease, "NO_FREE_SLOT")

        assert await queue.wait(1.0) == [claim.tune.engine]

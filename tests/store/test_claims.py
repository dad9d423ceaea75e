"""Which tune a free slot gets."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from store import assets, events, keys, leases, reports, tunes
from store.database import Database
from store.states import TuneState
from store.tables import Tenant, tenants
from store.tables import assets as assets_table
from tests.store.world import ENGINE, LEASE, PLENTY, World


async def test_the_head_of_the_queue_goes_by_priority_then_by_age(world: World) -> None:
    old, young, urgent = await world.queued(), await world.queued(), await world.queued(priority=1)

    claims = [await world.claim() for _ in range(3)]

    assert [claim.tune.id for claim in claims if claim] == [urgent.id, old.id, young.id]
    assert await world.claim() is None


async def test_a_claim_carries_all_that_a_trainer_needs(world: World) -> None:
    files = [await world.file(), await world.file()]
    new = world.new_tune(files, files=[(files[0].id, "a cat"), (files[1].id, None)])
    await tunes.submit(world.database, new)

    claim = await world.claim()

    assert claim is not None
    assert claim.lease == leases.LeaseRef(claim.tune.id, 1, "trainer-1")
    assert claim.tune.state is TuneState.ASSIGNED
    assert [(file.id, caption) for file, caption in claim.files] == [(files[0].id, "a cat"), (files[1].id, None)]
    assert claim.checkpoint.source == {"builtin": "tiny-shapes"}
    assert claim.snapshot is None


async def test_a_tune_goes_only_where_its_engine_and_memory_fit(world: World) -> None:
    await world.queued(memory_class=24)
    engine = "image/stable-diffusion-xl-v1-0"
    larger = await assets.publish(world.database, "tunesmith", "larger", engine, {"builtin": "larger"})
    await world.queued(checkpoint_ref=larger.id, priority=9)

    assert await world.claim(memory_bytes=23 * 2**30) is None
    claim = await world.claim(memory_bytes=24 * 2**30)
    assert claim is not None
    assert claim.tune.engine == ENGINE


async def test_priority_counts_across_a_tenants_memory_classes(world: World) -> None:
    await world.queued(memory_class=0)
    urgent = await world.queued(memory_class=24, priority=1)

    claim = await world.claim()

    assert claim is not None
    assert claim.tune.id == urgent.id


async def test_the_neediest_tenant_goes_first_by_its_weight(database: Database, world: World) -> None:
    heavy = await keys.create_tenant(database, "heavy", weight=2.0)
    file = await world.file(tenant=heavy)
    for _ in range(9):
        await world.queued()
        await tunes.submit(database, world.new_tune([file], tenant_id=heavy.id))

    claims = [await world.claim() for _ in range(9)]

    shares = [claim.tune.tenant_id for claim in claims if claim]
    assert (shares.count(heavy.id), shares.count(world.tenant.id)) == (6, 3)


async def test_equally_needy_tenants_take_turns(database: Database, world: World) -> None:
    other = await keys.create_tenant(database, "other")
    file = await world.file(tenant=other)
    order = []
    for _ in range(4):
        await world.queued()
        await tunes.submit(database, world.new_tune([file], tenant_id=other.id))
    for _ in range(4):
        claim = await world.claim()
        assert claim is not None
        order.append(claim.tune.tenant_id)
        await leases.withdraw(database, claim.lease, "NO_FREE_SLOT")  # so that both are as needy as before
        await database.move_clock(1)

    assert order[0] != order[1]
    assert order[:2] == order[2:]


async def test_a_tenant_at_its_limit_waits(database: Database, world: World) -> None:
    await _limit(database, world.tenant, 1)
    await world.queued()
    await world.queued()

    first, second = await world.claim(), await world.claim()

    assert first is not None
    assert second is None


async def test_claims_at_once_give_each_tune_once_and_overshoot_no_limit(
    database: Database, world: World, database_url: str
) -> None:
    second = (await world.other_gateway(database_url)).database
    await _limit(database, world.tenant, 7)
    for _ in range(10):
        await world.queued()
    offers = [leases.Offer(f"trainer-{number}", [ENGINE], PLENTY) for number in range(12)]

    claims = await asyncio.gather(
        *(leases.claim((database, second)[number % 2], offer, LEASE) for number, offer in enumerate(offers))
    )

    taken = [claim.tune.id for claim in claims if claim is not None]
    assert len(taken) == len(set(taken)) == 7
    await second.close()


async def test_leases_that_end_together_are_taken_over_in_the_order_of_their_tunes(world: World) -> None:
    held = [await world.running() for _ in range(3)]
    await leases.renew(world.database, "trainer-1", [claim.lease for claim in reversed(held)], LEASE)
    await world.pass_time(LEASE + 1)

    claims = [await world.claim("trainer-2") for _ in held]

    assert [claim.tune.id for claim in claims if claim] == [claim.tune.id for claim in held]


async def test_a_warm_checkpoint_goes_before_an_older_tune_only_for_a_while(world: World) -> None:
    warm = await assets.publish(world.database, "tunesmith", "warm", ENGINE, {"builtin": "warm"})
    cold = await world.queued()
    fits = await world.queued(checkpoint_ref=warm.id)

    claim = await world.claim(warm=[warm.id])
    assert claim is not None
    assert claim.tune.id == fits.id
    await leases.withdraw(world.database, claim.lease, "NO_FREE_SLOT")
    await world.pass_time(31)
    claim = await world.claim(warm=[warm.id])
    assert claim is not None
    assert claim.tune.id == cold.id


async def test_a_checkpoint_of_hugging_face_is_warm_by_its_repository_and_commit(world: World) -> None:
    source = {"hugging_face": "someone/base", "commit": "c" * 40}
    fetched = await assets.publish(world.database, "octoai", "base", ENGINE, source)
    other = await assets.publish(world.database, "octoai", "newer", ENGINE, {**source, "commit": "d" * 40})
    for checkpoint in (world.checkpoint, other):
        await world.queued(checkpoint_ref=checkpoint.id)
    fits = await world.queued(checkpoint_ref=fetched.id)

    claim = await world.claim(warm=[f"someone/base@{'c' * 40}"])

    assert claim is not None
    assert claim.tune.id == fits.id


async def test_files_that_are_not_there_fail_the_tune_with_every_reason(world: World) -> None:
    good, unready, refused, gone = [await world.file(ready=ready) for ready in (True, False, False, True)]
    await assets.reject(world.database, world.tenant.id, refused.id, "TRUNCATED", "The picture is cut off.")
    new = world.new_tune([good, unready, refused, gone])
    tune = (await tunes.submit(world.database, new)).tune
    await assets.delete(world.database, world.tenant.id, gone.id)
    next_one = await world.queued()

    claim = await world.claim()

    assert claim is not None
    assert claim.tune.id == next_one.id  # the claim went on to it
    failed = await world.tune(tune.id)
    assert failed.state is TuneState.FAILED
    assert failed.status_details.startswith("3 of 4 files cannot be used.")
    for file, reason in (
        (unready, "has not been uploaded"),
        (refused, "The picture is cut off"),
        (gone, "was deleted"),
    ):
        assert f"{file.name!r} ({file.id})" in failed.status_details
        assert reason in failed.status_details
    assert (failed.available, failed.unready, failed.rejected) == (1, [unready.id], [refused.id, gone.id])
    log = await events.list_events(world.database, tune.id)
    assert [event.kind for event in log] == ["status_changed", "verdict", "verdict", "verdict", "status_changed"]
    assert [event.body["reason"] for event in log[1:4]] == ["NOT_UPLOADED", "TRUNCATED", "DELETED"]
    assert log[-1].body["status"] == "failed"


async def test_files_that_are_not_there_are_left_out_where_the_caller_wants_it(world: World) -> None:
    good, unready = await world.file(), await world.file(ready=False)
    await tunes.submit(world.database, world.new_tune([unready, good], continue_on_rejection=True))

    claim = await world.claim()

    assert claim is not None
    assert [file.id for file, _ in claim.files] == [good.id]
    assert (claim.tune.available, claim.tune.unready) == (1, [unready.id])
    assert unready.name in claim.tune.status_details


async def test_a_picture_that_a_trainer_refused_before_it_died_fails_the_tune_all_the_same(world: World) -> None:
    files = [await world.file(), await world.file()]
    tune = (await tunes.submit(world.database, world.new_tune(files))).tune
    claim = await world.claim()
    assert claim is not None
    await leases.accept(world.database, claim.lease)
    verdict = {"file_id": files[0].id, "accepted": False, "reason": "TRUNCATED", "details": "ends early"}
    await reports.record_event(world.database, claim.lease, 1, "verdict", verdict)
    await world.pass_time(LEASE + 1)

    again = await world.claim("trainer-2")

    failed = await world.tune(tune.id)
    assert (again, failed.state) == (None, TuneState.FAILED)
    assert files[0].id in failed.status_details


async def test_a_tune_with_no_file_left_fails_whatever_the_caller_wants(world: World) -> None:
    new = world.new_tune([await world.file(ready=False)], continue_on_rejection=True)
    tune = (await tunes.submit(world.database, new)).tune

    assert await world.claim() is None
    assert (await world.tune(tune.id)).state is TuneState.FAILED


async def test_a_file_deleted_after_the_start_is_still_read_by_later_attempts(world: World) -> None:
    claim = await world.running()
    [(file, _)] = claim.files
    await assets.delete(world.database, world.tenant.id, file.id)
    await world.pass_time(LEASE + 1)

    again = await world.claim("trainer-2")

    assert again is not None
    assert [each.id for each, _ in again.files] == [file.id]
    assert again.files[0][0].object_key == file.object_key


async def test_a_checkpoint_that_was_never_uploaded_fails_the_tune(world: World) -> None:
    mine = await assets.publish(world.database, "tunesmith", "mine", ENGINE, {"builtin": "mine"})
    tune = await world.queued(checkpoint_ref=mine.id)
    async with world.database.write() as transaction:  # submit() would have refused it
        await transaction.execute(update(assets_table).where(assets_table.c.id == mine.id).values(source=None))

    assert await world.claim() is None
    failed = await world.tune(tune.id)
    assert failed.state is TuneState.FAILED
    assert "mine" in failed.status_details


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_tenant_whose_row_is_locked_is_waited_for_when_there_is_no_other(
    database: Database, world: World
) -> None:
    tune = await world.queued()
    async with database.write() as submission:
        await submission.execute(update(tenants).where(tenants.c.id == world.tenant.id).values(weight=3.0))
        claiming = asyncio.create_task(world.claim())
        await asyncio.wait([claiming], timeout=0.2)
        assert not claiming.done()

    claim = await claiming

    assert claim is not None
    assert claim.tune.id == tune.id


async def _limit(database: Database, tenant: Tenant, running: int) -> None:
    async with database.write() as transaction:
        await transaction.execute(update(tenants).where(tenants.c.id == tenant.id).values(running_limit=running))

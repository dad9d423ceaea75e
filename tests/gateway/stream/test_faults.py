"""What the gateway does about a trainer that is gone, a result that comes too late, an object store that is away."""

import asyncio

import pytest

from store import leases
from store.errors import ObjectsAway
from store.leftovers import leftovers
from store.states import TuneState
from tests.gateway.stream.conftest import LORA, Stage
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def lease_ends(stage: Stage) -> None:
    """Time passes as it does while gateways live: in steps shorter than half a lease."""
    for _ in range(4):
        await stage.database.move_clock(15)
        await leases.reap(stage.database, 45)


async def test_dropped_stream_requeues_nothing_and_the_leases_end_does(stage: Stage) -> None:
    """Whole trainer dies: any other one goes on from the snapshot."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.take()
    await stage.put(f"incoming/{tune.id}/1/snapshots/2.safetensors", LORA)
    uploaded = await stage.upload_lora(assign.lease)
    snapshot = pb.UploadedObject(name="snapshots/2.safetensors", sha256=uploaded.lora.sha256, size_bytes=len(LORA))
    await first.report(snapshot_ready=pb.SnapshotReady(lease=assign.lease, report_seq=1, step=2, object=snapshot))
    second = await stage.trainer(gateway, "trainer-2")
    await second.hear("welcome")

    await first.leave()
    while gateway.metric("tunesmith_trainers_connected") == 2:
        await second.beat()  # each wakes the dispatcher
    await second.beat()
    held = await stage.tune(tune.id)
    await lease_ends(stage)
    again = await second.take()

    assert (held.state, held.lease_epoch, held.lease_trainer_id) == (TuneState.RUNNING, 1, "trainer-1")
    assert (again.lease.epoch, again.snapshot.step) == (2, 2)


async def test_result_of_a_lost_lease_is_stale_and_its_object_is_the_sweepers(stage: Stage) -> None:
    """Result of a lost lease: nothing of it is kept, and the new holder's is what gets committed."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    lost = (await (await stage.trainer(gateway)).take()).lease
    await stage.until(tune.id, TuneState.RUNNING)
    await stage.trainers[0].leave()
    late = await stage.upload_lora(lost)
    await lease_ends(stage)
    second = await stage.trainer(gateway, "trainer-2")
    taken = (await second.take()).lease

    back = await stage.trainer(gateway, held=[pb.HeldAttempt(lease=lost, result_pending=True)])
    [verdict] = (await back.hear("welcome")).held
    stale = await back.report(finished=late)
    recorded = await second.report(finished=await stage.upload_lora(taken))
    done = await stage.tune(tune.id)

    key = f"incoming/{tune.id}/1/lora.safetensors"
    assert (verdict.action, stale.outcome) == (pb.HELD_ACTION_ABORT, pb.REPORT_OUTCOME_STALE)
    assert await stage.objects.stat(key) == len(LORA)
    assert await leftovers(stage.database, {key: 0.0}, upload_seconds=86_400) == [key]
    assert recorded.outcome == pb.REPORT_OUTCOME_RECORDED
    assert (done.state, done.lease_epoch, len(done.output_lora_ids)) == (TuneState.SUCCEEDED, 2, 1)


@pytest.mark.parametrize("step", ["stat", "move", "hash"])
async def test_result_waits_for_an_object_store_that_is_away_and_the_lease_is_kept(
    stage: Stage, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object store away: the gateway tries again, and beats are answered meanwhile."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    lease = (await trainer.take()).lease
    report = await stage.upload_lora(lease)
    tried = asyncio.Event()

    async def away(*_: object) -> None:
        tried.set()
        raise ObjectsAway("no route to the object store")

    monkeypatch.setattr("gateway.recorder.RETRY", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(stage.objects, step, away)
        await trainer.say(finished=report)
        await asyncio.wait_for(tried.wait(), 20)
        beat = await trainer.beat(lease, free_slots=0)
        meanwhile = await stage.tune(tune.id)
    ack = await trainer.hear("report_ack")

    assert list(beat.extended) == [lease]
    assert meanwhile.state is TuneState.RUNNING
    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
    assert (await stage.tune(tune.id)).state is TuneState.SUCCEEDED

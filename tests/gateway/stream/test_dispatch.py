"""Who gets which tune, and what he is told about it."""

import asyncio
import hashlib
from collections.abc import Sequence

import grpc
import pytest

from store import assets, leases, tables, trainers, tunes
from store.database import Database
from store.errors import ObjectsAway
from store.states import TuneState
from tests.gateway.stream.conftest import ENGINE, Stage, Trainer
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2


async def test_a_queued_tune_goes_to_the_idle_trainer(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)

    assign = await trainer.hear("assign")

    assert assign.lease == pb.Lease(tune_id=tune.id, epoch=1)
    assert assign.engine == ENGINE
    assert assign.lease_duration.seconds == 45
    assert assign.checkpoint.builtin.name == "tiny-shapes"
    assert assign.request.steps == 3
    assert assign.request.hyperparameters == tune_pb2.Hyperparameters(
        rank=4, schedule=tune_pb2.LEARNING_RATE_SCHEDULE_LINEAR
    )
    assert [picture.caption for picture in assign.pictures] == ["a star 0", "a star 1"]
    assert assign.pictures[0].sha256 == hashlib.sha256(b"picture stars-0").hexdigest()
    assert assign.pictures[0].url.startswith("http://gateway/v1/objects/assets/")
    assert not assign.HasField("resolved_recipe")
    assert not assign.HasField("snapshot")


async def test_a_tune_that_comes_later_wakes_the_dispatcher(stage: Stage) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")

    tune = await stage.submit()

    assert (await trainer.hear("assign")).lease.tune_id == tune.id
    assert gateway.metric("tunesmith_dispatch_wait_seconds_count") == 1


async def test_one_slot_gets_one_tune_and_the_next_after_its_result(stage: Stage) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    first, second = await stage.submit("first"), await stage.submit("second")
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()

    ack = await trainer.report(finished=await stage.upload_lora(assign.lease))
    following = await trainer.hear("assign")

    assert assign.lease.tune_id == first.id
    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
    assert following.lease.tune_id == second.id


async def test_two_slots_get_two_tunes(stage: Stage) -> None:
    gateway = await stage.gateway()
    made = {(await stage.submit(name)).id for name in ("first", "second", "third")}
    trainer = await stage.trainer(gateway, slots=2)

    taken = {(await trainer.take()).lease.tune_id for _ in range(2)}
    ack = await trainer.beat(*(pb.Lease(tune_id=id, epoch=1) for id in taken), free_slots=0)

    assert taken < made
    assert len(ack.extended) == 2
    assert trainer.heard.empty()


async def test_an_engine_that_nobody_offers_waits(stage: Stage) -> None:
    gateway = await stage.gateway()
    other = await assets.publish(stage.database, "tunesmith", "other", "image/flux-dev", {"builtin": "other"})
    tune = await stage.submit(checkpoint_ref=other.id)
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")
    await trainer.beat()
    await trainer.beat()

    assert trainer.heard.empty()
    assert (await stage.tune(tune.id)).state is TuneState.QUEUED
    assert await trainers.offers_engine(stage.database, ENGINE)
    assert not await trainers.offers_engine(stage.database, "image/flux-dev")


async def test_a_trainer_whose_engine_restarts_is_left_alone(stage: Stage) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")
    await trainer.beat(free_slots=0)
    await stage.submit()
    await trainer.beat(free_slots=0)
    assert trainer.heard.empty()

    await trainer.say(heartbeat=pb.Heartbeat(seq=9, free_slots=1))

    await trainer.hear("assign")


async def test_a_draining_trainer_gets_nothing(stage: Stage) -> None:
    gateway = await stage.gateway()
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")
    await trainer.say(draining=pb.Draining(reason="maintenance"))
    await trainer.beat()
    await stage.submit()
    await trainer.beat()

    assert trainer.heard.empty()


async def test_a_drained_trainer_hears_of_it_and_gets_nothing_until_it_is_resumed(stage: Stage) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    trainer = await stage.trainer(gateway)
    await trainer.beat()

    await trainers.drain(stage.database, "trainer-1", "a new disk")
    drain = await trainer.hear("drain")
    tune = await stage.submit()
    ack = await trainer.beat()
    idle = trainer.heard.empty()
    counted = gateway.metric("tunesmith_trainers_drained")
    await trainers.resume(stage.database, "trainer-1")
    assign = await trainer.hear("assign")

    assert (drain.reason, ack.drained, idle, counted) == ("a new disk", True, True, 1)
    assert assign.lease.tune_id == tune.id
    assert not (await trainer.beat(assign.lease, free_slots=0)).drained
    assert gateway.metric("tunesmith_trainers_drained") == 0


async def test_drain_is_the_second_word_that_a_drained_trainer_hears(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.take()
    await stage.until(tune.id, TuneState.RUNNING)
    await stage.submit("second")
    await trainers.drain(stage.database, "trainer-1", "a new disk")
    await first.leave()

    held = [pb.HeldAttempt(lease=assign.lease)]
    again = await stage.trainer(gateway, held=held, slots=2)
    welcome = await again.heard.get()
    drain = await again.heard.get()
    await again.beat(assign.lease)

    assert [each.action for each in welcome.welcome.held] == [pb.HELD_ACTION_CONTINUE]
    assert drain.drain.reason == "a new disk"
    assert again.heard.empty()


async def test_a_drained_trainer_finishes_what_it_has(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    await trainers.drain(stage.database, "trainer-1", "a new disk")
    await trainer.hear("drain")

    ack = await trainer.report(finished=await stage.upload_lora(assign.lease))

    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
    assert (await stage.tune(tune.id)).state is TuneState.SUCCEEDED


async def test_polling_finds_a_drain_and_its_end_that_no_wake_up_told(stage: Stage) -> None:
    await stage.gateway()
    other = await stage.gateway(gateway_id="gateway-2")  # SQLite's wake-ups stay in one process's own database
    trainer = await stage.trainer(other)
    await trainer.hear("welcome")

    await trainers.drain(stage.database, "trainer-1", "a new disk")
    drain = await trainer.hear("drain")
    await stage.submit()
    await trainers.resume(stage.database, "trainer-1")
    await trainer.hear("assign")

    assert drain.reason == "a new disk"


async def test_a_process_that_comes_while_rows_are_read_is_not_evicted_by_the_row_before(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    first = await stage.trainer(gateway)
    await first.beat()
    find = trainers.find
    newer: list[Trainer] = []

    async def find_slowly(database: Database, trainer_ids: Sequence[str]) -> list[tables.Trainer]:
        rows = await find(database, trainer_ids)
        if not newer:
            newer.append(await stage.trainer(gateway, boot_id="boot-2"))
            await newer[0].hear("welcome")
        return rows

    monkeypatch.setattr(trainers, "find", find_slowly)
    stage.database.wakeups.publish("trainer", "trainer-1")
    ended = await first.end()
    await newer[0].beat()
    await trainers.drain(stage.database, "trainer-1", "a new disk")

    assert ended == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_TRAINER")
    assert (await newer[0].hear("drain")).reason == "a new disk"


async def test_an_assignment_that_is_not_accepted_is_withdrawn_and_costs_no_attempt(stage: Stage) -> None:
    gateway = await stage.gateway(accept_seconds=0.05)
    tune = await stage.submit()
    silent = await stage.trainer(gateway)
    assign = await silent.hear("assign")

    revoke = await silent.hear("revoke")
    busy = await stage.trainer(gateway, "trainer-2")
    again = await busy.take()

    assert revoke.lease == assign.lease
    assert again.lease == pb.Lease(tune_id=tune.id, epoch=2)
    assert (await stage.until(tune.id, TuneState.RUNNING)).attempts == 1


async def test_a_tune_whose_urls_cannot_be_signed_waits_and_costs_no_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await stage.gateway(heartbeat_seconds=0.2)
    asked = asyncio.Event()

    async def away(*_: object) -> None:
        asked.set()
        raise ObjectsAway("no credentials")

    with monkeypatch.context() as patch:
        patch.setattr(stage.objects, "sign_get", away)
        tune = await stage.submit()
        trainer = await stage.trainer(gateway)
        await asyncio.wait_for(asked.wait(), 20)
        await stage.until(tune.id, TuneState.QUEUED)  # again: it had been claimed
    await trainer.beat()
    taken = await trainer.take()

    assert taken.lease.tune_id == tune.id
    assert (await stage.until(tune.id, TuneState.RUNNING)).attempts == 1


async def test_an_assignment_is_withdrawn_also_after_its_stream_has_ended(stage: Stage) -> None:
    gateway = await stage.gateway(accept_seconds=0.2)
    tune = await stage.submit()
    silent = await stage.trainer(gateway)
    await silent.hear("assign")

    await silent.leave()
    other = await stage.trainer(gateway, "trainer-2")

    assert (await other.take()).lease == pb.Lease(tune_id=tune.id, epoch=2)


async def test_a_rejected_tune_goes_elsewhere_and_costs_no_attempt(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    picky = await stage.trainer(gateway)
    assign = await picky.hear("assign")

    await picky.say(rejected=pb.Rejected(lease=assign.lease, reason="TOO_LITTLE_MEMORY"))
    other = await stage.trainer(gateway, "trainer-2")
    again = await other.take()

    assert again.lease.epoch == 2
    assert (await stage.until(tune.id, TuneState.RUNNING)).attempts == 1


async def test_a_tune_whose_lease_has_ended_goes_to_another_trainer_with_its_recipe(stage: Stage) -> None:
    gateway = await stage.gateway(reap_seconds=0.05)
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.take()
    recipe = pb.ResolvedRecipe(json='{"seed":7}', sha256=hashlib.sha256(b'{"seed":7}').hexdigest())
    await first.report(event=pb.Event(lease=assign.lease, report_seq=1, resolved_recipe=recipe))
    await first.leave()

    for _ in range(4):  # as time passes while gateways live: in steps shorter than half a lease
        await stage.database.move_clock(15)
        await leases.reap(stage.database, 45)
    second = await stage.trainer(gateway, "trainer-2")
    again = await second.take()

    assert again.lease == pb.Lease(tune_id=tune.id, epoch=2)
    assert again.resolved_recipe == recipe


async def test_cancel_reaches_the_trainer_at_once(stage: Stage) -> None:
    gateway = await stage.gateway(poll_seconds=3600.0)
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    await stage.until(tune.id, TuneState.RUNNING)

    await tunes.cancel(stage.database, stage.tenant, tune.id)
    cancel = await trainer.hear("cancel")
    ack = await trainer.beat(assign.lease, free_slots=0)
    observed = pb.CancelObserved(lease=assign.lease, report_seq=1, step=1)
    outcome = (await trainer.report(cancel_observed=observed)).outcome

    assert cancel.lease == assign.lease
    assert list(ack.cancelled) == [assign.lease]
    assert outcome == pb.REPORT_OUTCOME_RECORDED
    assert (await stage.tune(tune.id)).state is TuneState.CANCELLED


async def test_polling_finds_a_tune_and_its_cancel_that_no_wake_up_told(stage: Stage) -> None:
    await stage.gateway()
    other = await stage.gateway(gateway_id="gateway-2")  # SQLite's wake-ups stay in one process's own database
    trainer = await stage.trainer(other)
    await trainer.hear("welcome")

    tune = await stage.submit()
    assign = await trainer.take()
    await stage.until(tune.id, TuneState.RUNNING, through=other.database)
    await tunes.cancel(stage.database, stage.tenant, tune.id)
    cancel = await trainer.hear("cancel")

    assert assign.lease.tune_id == tune.id
    assert cancel.lease == assign.lease
    assert trainer.beats == 0


async def test_shutdown_sends_trainers_elsewhere(stage: Stage) -> None:
    gateway = await stage.gateway()
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")

    import asyncio

    leaving = asyncio.create_task(gateway.dispatcher.shutdown(10.0))
    await trainer.hear("reconnect")
    await trainer.call.done_writing()
    await leaving

    row = await trainers.current(stage.database, "trainer-1")
    assert row is not None
    assert row.disconnected_at is not None

"""One trainer's stream, at the gateway: what is taken, what is recorded, who is cut off."""

import asyncio
import hashlib
from typing import Any

import grpc
import pytest

from gateway.session import Session
from store import assets, events, leases, reports, trainers
from store.errors import DatabaseAway
from store.states import TuneState
from tests.gateway.stream.conftest import ENGINE, LORA, Stage, finished
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2


async def test_welcome_says_lease_and_beat(stage: Stage) -> None:
    gateway = await stage.gateway(lease_seconds=3.0, heartbeat_seconds=0.5)

    welcome = await (await stage.trainer(gateway)).hear("welcome")

    assert welcome.lease.ToTimedelta().total_seconds() == 3.0
    assert welcome.heartbeat.ToTimedelta().total_seconds() == 0.5
    assert gateway.metric("tunesmith_trainers_connected") == 1


async def test_a_result_is_verified_moved_and_recorded_once(stage: Stage) -> None:
    """Result sent twice: ALREADY_RECORDED."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    report = await stage.upload_lora(assign.lease)

    first = await trainer.report(finished=report)
    second = await trainer.report(finished=report)
    done = await stage.tune(tune.id)
    lora = await assets.find(stage.database, stage.tenant, done.output_lora_ids[0])

    assert (first.report_seq, first.outcome) == (1, pb.REPORT_OUTCOME_RECORDED)
    assert second.outcome == pb.REPORT_OUTCOME_ALREADY_RECORDED
    assert done.state is TuneState.SUCCEEDED
    assert done.available == 2
    assert lora.sha256 == hashlib.sha256(LORA).hexdigest()
    assert lora.object_key == f"loras/{tune.id}/1/{lora.sha256}.safetensors"
    assert await stage.objects.stat(lora.object_key) == len(LORA)
    assert await stage.objects.stat(f"incoming/{tune.id}/1/lora.safetensors") is None
    assert lora.data["file_format"] == "safetensors"


async def test_a_result_whose_object_was_moved_before_a_crash_is_still_recorded(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    report = finished(assign.lease)
    await stage.put(f"loras/{tune.id}/1/{report.lora.sha256}.safetensors", LORA)

    assert (await trainer.report(finished=report)).outcome == pb.REPORT_OUTCOME_RECORDED
    assert (await stage.tune(tune.id)).state is TuneState.SUCCEEDED


@pytest.mark.parametrize("body", [b"the bytes of A lora", b"too short", None])
async def test_a_damaged_result_is_no_success(stage: Stage, body: bytes | None) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    report = finished(assign.lease) if body is None else await stage.upload_lora(assign.lease, body)

    ack = await trainer.report(finished=report)
    again = await trainer.take()

    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
    assert again.lease == pb.Lease(tune_id=tune.id, epoch=2)
    assert await stage.objects.stat(f"loras/{tune.id}/1/{report.lora.sha256}.safetensors") is None


async def test_a_report_of_a_lost_lease_is_stale(stage: Stage) -> None:
    gateway = await stage.gateway()
    await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    lost = pb.Lease(tune_id=assign.lease.tune_id, epoch=7)

    ack = await trainer.report(finished=finished(lost))

    assert ack.outcome == pb.REPORT_OUTCOME_STALE


async def test_another_trainers_lease_cannot_be_written(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    owner = await stage.trainer(gateway)
    assign = await owner.take()
    await stage.until(tune.id, TuneState.RUNNING)
    liar = await stage.trainer(gateway, "trainer-2")

    ack = await liar.report(failed=pb.Failed(lease=assign.lease, report_seq=1, reason="LIE"))
    await liar.say(
        url_request=pb.UrlRequest(
            request_id=1,
            lease=assign.lease,
            objects=[pb.ObjectName(method=pb.METHOD_PUT, name="lora.safetensors")],
        )
    )
    revoke = await liar.hear("revoke")
    beat = await liar.beat(assign.lease)

    assert ack.outcome == pb.REPORT_OUTCOME_STALE
    assert revoke.lease == assign.lease
    assert list(beat.lost) == [assign.lease]
    assert (await stage.tune(tune.id)).state is TuneState.RUNNING


async def test_progress_is_stored_in_chunks_before_the_result(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    for step in (1, 2, 3):
        metrics = [pb.StepMetrics(step=step, loss=1 / step, learning_rate=1e-4, steps_per_second=5)]
        progress = pb.Progress(
            lease=assign.lease, phase=tune_pb2.TUNE_PHASE_TRAINING, step=step, steps=3, metrics=metrics
        )
        await trainer.say(progress=progress)
    await trainer.report(finished=await stage.upload_lora(assign.lease))

    log = await events.list_events(stage.database, tune.id)
    chunks = [event.body["steps"] for event in log if event.kind == "metrics"]
    row = await stage.tune(tune.id)

    assert [step["step"] for chunk in chunks for step in chunk] == [1, 2, 3]
    assert row.step == 3
    assert row.loss == pytest.approx(1 / 3)


async def test_a_phase_said_right_after_accepting_is_not_lost(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.hear("assign")
    await trainer.say(accepted=pb.Accepted(lease=assign.lease))
    downloading = pb.Progress(lease=assign.lease, phase=tune_pb2.TUNE_PHASE_DOWNLOADING, steps=3)
    await trainer.say(progress=downloading)

    async with stage.database.wakeups.subscribe("tune") as changes:
        while (await stage.tune(tune.id)).phase != "downloading":
            assert await changes.wait(10)


async def test_verdicts_warnings_and_the_recipe_reach_the_log(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit(continue_on_rejection=True)
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    bad = assign.pictures[1].file_id
    recipe = pb.ResolvedRecipe(json='{"seed":7}', sha256=hashlib.sha256(b'{"seed":7}').hexdigest())
    verdict = pb.Verdict(file_id=bad, accepted=False, reason="TRUNCATED", details="It ends early.")
    said: list[dict[str, Any]] = [
        {"verdict": verdict},
        {"resolved_recipe": recipe},
        {"warning": pb.Warning(reason="SLOW", details="x")},
    ]

    acks = [
        await trainer.report(event=pb.Event(lease=assign.lease, report_seq=seq, **arm))
        for seq, arm in enumerate(said, start=1)
    ]
    row = await stage.tune(tune.id)
    kinds = [event.kind for event in await events.list_events(stage.database, tune.id)]

    assert [ack.outcome for ack in acks] == [pb.REPORT_OUTCOME_RECORDED] * 3
    assert row.rejected == [bad]
    assert row.resolved_recipe == '{"seed":7}'
    assert [kind for kind in kinds if kind in ("verdict", "recipe_resolved", "warning")] == [
        "verdict",
        "recipe_resolved",
        "warning",
    ]


async def test_an_assign_bears_the_trace_context_of_the_tunes_request(stage: Stage) -> None:
    gateway = await stage.gateway()
    traced, untraced = await stage.submit("traced", traceparent="00-1-2-01"), await stage.submit("untraced")
    trainer = await stage.trainer(gateway, slots=2)

    assigns = [await trainer.take(), await trainer.take()]

    assert {each.lease.tune_id: each.traceparent for each in assigns} == {traced.id: "00-1-2-01", untraced.id: ""}


async def test_a_snapshot_is_verified_and_comes_with_the_next_assign(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    body = b"a snapshot"
    await stage.put(f"incoming/{tune.id}/1/snapshots/2.safetensors", body)
    sha256 = hashlib.sha256(body).hexdigest()
    uploaded = pb.UploadedObject(name="snapshots/2.safetensors", sha256=sha256, size_bytes=len(body))

    ready = pb.SnapshotReady(lease=assign.lease, report_seq=1, step=2, object=uploaded)
    ack = await trainer.report(snapshot_ready=ready)
    returned = await trainer.report(lease_returned=pb.LeaseReturned(lease=assign.lease, report_seq=2, step=2))
    again = await trainer.take()

    assert [ack.outcome, returned.outcome] == [pb.REPORT_OUTCOME_RECORDED] * 2
    assert (again.lease.epoch, again.snapshot.step, again.snapshot.sha256) == (2, 2, sha256)
    assert again.snapshot.url
    assert (await stage.until(tune.id, TuneState.RUNNING)).attempts == 1


@pytest.mark.parametrize("is_damaged", [True, False])
async def test_a_snapshot_is_given_up_only_where_it_is_damaged_whatever_a_trainer_says(
    stage: Stage, is_damaged: bool
) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    await stage.put(f"incoming/{tune.id}/1/snapshots/2.safetensors", b"a snapshot")
    sha256 = hashlib.sha256(b"a snapshot").hexdigest()
    uploaded = pb.UploadedObject(name="snapshots/2.safetensors", sha256=sha256, size_bytes=10)
    await trainer.report(snapshot_ready=pb.SnapshotReady(lease=assign.lease, report_seq=1, step=2, object=uploaded))
    key = (await stage.tune(tune.id)).snapshot_key
    assert key is not None
    if is_damaged:
        await stage.put(key, b"A snapshot")

    failed = pb.Failed(lease=assign.lease, report_seq=2, reason="SNAPSHOT_REFUSED", details="so it is", retryable=True)
    await trainer.report(failed=failed)

    row = await stage.tune(tune.id)
    assert (row.snapshot_key, row.crashes) == ((None, 0) if is_damaged else (key, 1))


async def test_the_third_snapshot_takes_the_place_of_the_first(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()

    for step in (1, 2, 3):
        body = f"after {step}".encode()
        await stage.put(f"incoming/{tune.id}/1/snapshots/{step}.safetensors", body)
        uploaded = pb.UploadedObject(
            name=f"snapshots/{step}.safetensors", sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body)
        )
        await trainer.report(
            snapshot_ready=pb.SnapshotReady(lease=assign.lease, report_seq=step, step=step, object=uploaded)
        )

    kept = [key async for key, _ in stage.objects.list("snapshots/")]
    assert sorted(int(key.rsplit("/", 1)[1].split("-")[0]) for key in kept) == [2, 3]


async def test_a_stream_that_is_cancelled_as_its_trainer_ends_it_is_cancelled(stage: Stage) -> None:
    class Both:
        async def read(self) -> object:
            serving.cancel()
            return grpc.aio.EOF

        async def write(self, message: pb.GatewayMessage) -> None:
            """Nothing is said."""

    gateway = await stage.gateway()
    session = Session("trainer-1", pb.Hello(session_id="session-1"), gateway.dispatcher.desk)

    serving = asyncio.create_task(session.run(Both()))
    await asyncio.wait([serving])

    assert serving.cancelled()  # grpc never ends an rpc that returns in spite of it


async def test_a_damaged_snapshot_is_a_warning(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    uploaded = pb.UploadedObject(name="snapshots/2.safetensors", sha256="0" * 64, size_bytes=1)

    ack = await trainer.report(
        snapshot_ready=pb.SnapshotReady(lease=assign.lease, report_seq=1, step=2, object=uploaded)
    )

    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
    assert (await stage.tune(tune.id)).snapshot_key is None
    assert "SNAPSHOT_DAMAGED" in [
        event.body.get("reason") for event in await events.list_events(stage.database, tune.id)
    ]


async def test_urls_are_bounded_to_the_attempts_own_objects(stage: Stage) -> None:
    gateway = await stage.gateway()
    await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    prefix = f"http://gateway/v1/objects/incoming/{assign.lease.tune_id}/1"
    good = [
        pb.ObjectName(method=pb.METHOD_GET, name=f"pictures/{assign.pictures[0].file_id}"),
        pb.ObjectName(method=pb.METHOD_PUT, name="lora.safetensors"),
        pb.ObjectName(method=pb.METHOD_PUT, name="snapshots/100.safetensors"),
    ]
    bad = [
        pb.ObjectName(method=pb.METHOD_GET, name="pictures/asset_other"),
        pb.ObjectName(method=pb.METHOD_GET, name="lora.safetensors"),
        pb.ObjectName(method=pb.METHOD_GET, name="snapshot"),
        pb.ObjectName(method=pb.METHOD_PUT, name="../../assets/x"),
        pb.ObjectName(method=pb.METHOD_PUT, name=f"pictures/{assign.pictures[0].file_id}"),
    ]

    await trainer.say(url_request=pb.UrlRequest(request_id=5, lease=assign.lease, objects=[*bad, *good]))
    urls = await trainer.hear("urls")

    assert urls.request_id == 5
    assert [signed.object for signed in urls.urls] == good
    assert urls.urls[1].url.startswith(f"{prefix}/lora.safetensors?")
    assert urls.urls[2].url.startswith(f"{prefix}/snapshots/100.safetensors?")


async def test_hello_goes_on_with_what_it_restates_and_ends_the_rest(stage: Stage) -> None:
    gateway = await stage.gateway()
    kept, dropped = await stage.submit("kept"), await stage.submit("dropped")
    first = await stage.trainer(gateway, slots=2)
    await first.take()
    await first.take()
    for tune in (kept, dropped):
        await stage.until(tune.id, TuneState.RUNNING)
    await first.leave()

    held = [pb.HeldAttempt(lease=pb.Lease(tune_id=kept.id, epoch=1), step=2)]
    second = await stage.trainer(gateway, slots=2, held=held)
    welcome = await second.hear("welcome")
    again = await second.hear("assign")

    assert [(verdict.lease, verdict.action) for verdict in welcome.held] == [
        (pb.Lease(tune_id=kept.id, epoch=1), pb.HELD_ACTION_CONTINUE)
    ]
    assert again.lease == pb.Lease(tune_id=dropped.id, epoch=2)


@pytest.mark.parametrize(("boot", "reason"), [("boot-1", "SESSION_REPLACED"), ("boot-2", "DUPLICATE_TRAINER")])
async def test_hello_that_is_overtaken_before_it_has_restated_ends_no_lease(
    stage: Stage, boot: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    lease = (await first.take()).lease
    await stage.until(tune.id, TuneState.RUNNING)
    restate = leases.restate
    newer = trainers.Hello("trainer-1", boot, "session-999", "gateway-2", [ENGINE], 1)

    async def overtaken(*asked: Any) -> Any:
        await trainers.connect(stage.database, newer)
        return await restate(*asked)

    monkeypatch.setattr(leases, "restate", overtaken)
    late = await stage.trainer(gateway)

    assert (await late.end())[1] == reason
    assert await leases.is_current(stage.database, leases.LeaseRef(lease.tune_id, lease.epoch, "trainer-1"))


async def test_hello_that_is_overtaken_before_its_welcome_does_not_cut_the_newer_stream(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await stage.gateway()
    restated, newer_is_here = asyncio.Event(), asyncio.Event()
    welcome = Session.welcome

    async def slow(session: Session) -> None:
        await welcome(session)
        if session.session_id == "session-000":
            restated.set()
            await newer_is_here.wait()

    monkeypatch.setattr(Session, "welcome", slow)
    older = await stage.trainer(gateway)
    await asyncio.wait_for(restated.wait(), 20)
    newer = await stage.trainer(gateway)
    await newer.hear("welcome")
    newer_is_here.set()

    assert (await older.end())[1] == "SESSION_REPLACED"
    assert (await newer.beat()).seq == 1
    assert gateway.metric("tunesmith_trainers_connected") == 1


async def test_trainer_that_never_comes_to_its_welcome_is_not_connected(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await stage.gateway()
    said_goodbye = asyncio.Event()
    disconnect = trainers.disconnect

    async def away(*_: Any) -> Any:
        raise DatabaseAway("the server is gone")

    async def watched(*asked: Any) -> None:
        await disconnect(*asked)
        said_goodbye.set()

    monkeypatch.setattr(leases, "restate", away)
    monkeypatch.setattr(trainers, "disconnect", watched)
    trainer = await stage.trainer(gateway)
    ended = await trainer.end()
    await asyncio.wait_for(said_goodbye.wait(), 20)

    assert ended[0] is grpc.StatusCode.UNAVAILABLE
    assert await trainers.list_connected(stage.database) == []


@pytest.mark.parametrize(("gateway_fell_too", "crashes"), [(False, 1), (True, 0)])
async def test_a_trainer_that_fell_is_blamed_on_its_tune_unless_the_gateway_fell_too(
    stage: Stage, gateway_fell_too: bool, crashes: int
) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    await first.take()
    await stage.until(tune.id, TuneState.RUNNING)
    await first.leave()

    second = await stage.trainer(await stage.gateway() if gateway_fell_too else gateway)
    await second.hear("assign")

    assert (await stage.tune(tune.id)).crashes == crashes


async def test_hello_accepts_what_the_old_stream_could_not(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.hear("assign")
    await first.leave()

    await stage.trainer(gateway, held=[pb.HeldAttempt(lease=assign.lease)])

    assert (await stage.until(tune.id, TuneState.RUNNING)).lease_epoch == 1


async def test_hello_with_a_waiting_result_is_asked_for_it(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.take()
    await stage.until(tune.id, TuneState.RUNNING)
    await first.leave()
    report = await stage.upload_lora(assign.lease)

    held = [
        pb.HeldAttempt(lease=assign.lease, result_pending=True),
        pb.HeldAttempt(lease=pb.Lease(tune_id="tune_unknown", epoch=3), result_pending=True),
    ]
    second = await stage.trainer(gateway, boot_id="boot-2", held=held)
    welcome = await second.hear("welcome")
    ack = await second.report(finished=report)

    assert [verdict.action for verdict in welcome.held] == [pb.HELD_ACTION_SEND_RESULT, pb.HELD_ACTION_ABORT]
    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED


async def test_hello_with_a_waiting_result_accepts_what_the_old_stream_could_not(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    first = await stage.trainer(gateway)
    assign = await first.hear("assign")
    await first.leave()

    await stage.trainer(gateway, held=[pb.HeldAttempt(lease=assign.lease, result_pending=True)])

    assert (await stage.until(tune.id, TuneState.RUNNING)).lease_epoch == 1


async def test_a_beat_accepts_what_it_names_before_it_is_trusted(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.hear("assign")

    ack = await trainer.beat(assign.lease, free_slots=0)

    assert list(ack.extended) == [assign.lease]
    assert (await stage.tune(tune.id)).state is TuneState.RUNNING


async def test_a_newer_stream_of_the_same_process_takes_over(stage: Stage) -> None:
    gateway = await stage.gateway()
    older = await stage.trainer(gateway)
    await older.hear("welcome")

    newer = await stage.trainer(gateway)
    await newer.hear("welcome")

    assert await older.end() == (grpc.StatusCode.ABORTED, "SESSION_REPLACED")
    assert (await newer.beat()).seq == 1


async def test_a_hello_that_a_newer_one_has_overtaken_ends_no_lease(stage: Stage) -> None:
    gateway = await stage.gateway()
    await stage.submit()
    newer = await stage.trainer(gateway, session_id="session-9")
    assign = await newer.take()

    older = await stage.trainer(gateway, session_id="session-8")
    ended = await older.end()

    assert ended == (grpc.StatusCode.ABORTED, "SESSION_REPLACED")
    assert list((await newer.beat(assign.lease, free_slots=0)).extended) == [assign.lease]


async def test_a_hello_that_the_database_does_not_take_up_is_sent_elsewhere(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    gateway = await stage.gateway()
    monkeypatch.setattr("gateway.trainers.ADMISSION", 0.05)
    monkeypatch.setattr(leases, "restate", never)

    trainer = await stage.trainer(gateway)

    assert await trainer.end() == (grpc.StatusCode.UNAVAILABLE, "DATABASE_AWAY")


async def test_another_process_of_the_same_trainer_ends_the_older_one(stage: Stage) -> None:
    gateway = await stage.gateway()
    older = await stage.trainer(gateway)
    await older.hear("welcome")

    newer = await stage.trainer(gateway, boot_id="boot-2")
    await newer.hear("welcome")

    assert await older.end() == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_TRAINER")


async def test_a_session_on_another_gateway_is_evicted_too(postgres_stage: Stage) -> None:
    here, there = await postgres_stage.gateway(), await postgres_stage.gateway(gateway_id="gateway-2")
    older = await postgres_stage.trainer(here)
    await older.hear("welcome")

    newer = await postgres_stage.trainer(there, boot_id="boot-2")
    await newer.hear("welcome")

    assert await older.end() == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_TRAINER")


async def test_cancel_through_another_gateway_reaches_the_trainer(postgres_stage: Stage) -> None:
    from store import tunes

    here = await postgres_stage.gateway()
    there = await postgres_stage.gateway(gateway_id="gateway-2")
    tune = await postgres_stage.submit()
    trainer = await postgres_stage.trainer(here)
    assign = await trainer.take()
    await postgres_stage.until(tune.id, TuneState.RUNNING)

    await tunes.cancel(there.database, postgres_stage.tenant, tune.id)

    assert (await trainer.hear("cancel")).lease == assign.lease


async def test_hello_of_another_trainer_is_refused(stage: Stage) -> None:
    gateway = await stage.gateway()

    liar = await stage.trainer(gateway, trainer_id="trainer-2")

    assert await liar.end() == (grpc.StatusCode.PERMISSION_DENIED, "OTHER_TRAINER")


async def test_a_first_message_other_than_hello_is_refused(stage: Stage) -> None:
    from tests.gateway.stream.conftest import Trainer

    gateway = await stage.gateway()
    trainer = Trainer(await stage.call(gateway, stage.tokens["trainer-1"]), pb.Hello())
    stage.trainers.append(trainer)

    await trainer.say(draining=pb.Draining())

    assert await trainer.end() == (grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_BREACH")


LEASE = pb.Lease(tune_id="tune_1", epoch=1)
LIES: list[dict[str, Any]] = [
    {"heartbeat": pb.Heartbeat(seq=1, free_slots=-1)},
    {"hello": pb.Hello(trainer_id="trainer-1", boot_id="b", session_id="s", engines=["e"], slots=1)},
    {"accepted": pb.Accepted()},
    {"failed": pb.Failed(lease=LEASE, report_seq=0, reason="x")},
    {"failed": pb.Failed(lease=LEASE, report_seq=1, reason="x", details="a\x00b")},
    {"progress": pb.Progress(lease=LEASE, metrics=[pb.StepMetrics(step=1, loss=float("nan"))])},
    {"finished": pb.Finished(lease=LEASE, report_seq=1, step=1, pictures=1)},
    {"event": pb.Event(lease=LEASE, report_seq=1, resolved_recipe=pb.ResolvedRecipe(json='{"a":1}', sha256="0" * 64))},
    {
        "finished": pb.Finished(
            lease=LEASE,
            report_seq=1,
            step=1,
            pictures=1,
            lora=pb.UploadedObject(name="snapshots/1.safetensors", sha256="0" * 64),
        )
    },
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: next(iter(lie)))
async def test_a_message_against_the_rules_cuts_the_trainer_off(stage: Stage, lie: dict[str, Any]) -> None:
    gateway = await stage.gateway()
    trainer = await stage.trainer(gateway)
    await trainer.hear("welcome")

    await trainer.say(**lie)

    assert (await trainer.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_arm_is_ignored(stage: Stage) -> None:
    gateway = await stage.gateway()
    trainer = await stage.trainer(gateway)

    await trainer.say()

    assert (await trainer.beat()).seq == 1


async def test_streams_outlive_the_database(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database away: beats extend nothing and lose nothing, and the result is recorded afterwards."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    await stage.until(tune.id, TuneState.RUNNING)
    report = await stage.upload_lora(assign.lease)
    away = asyncio.Event()

    async def gone(*_: object, **__: object) -> None:
        away.set()
        raise DatabaseAway("it is away")

    with monkeypatch.context() as patch:
        patch.setattr("gateway.recorder.RETRY", 0.05)
        patch.setattr(leases, "renew", gone)
        patch.setattr(reports, "finish", gone)
        ack = await trainer.beat(assign.lease, free_slots=0)
        await trainer.say(finished=report)
        await asyncio.wait_for(away.wait(), 10)
        again = await trainer.beat(assign.lease, free_slots=0)
    recorded = await trainer.hear("report_ack")

    assert (ack.seq, list(ack.extended), list(ack.lost)) == (1, [], [])
    assert again.seq == 2
    assert recorded.outcome == pb.REPORT_OUTCOME_RECORDED


async def test_a_lease_that_ended_unclaimed_goes_on_with_the_next_beat(stage: Stage) -> None:
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)
    assign = await trainer.take()
    await stage.until(tune.id, TuneState.RUNNING)

    await stage.database.move_clock(60)
    ack = await trainer.beat(assign.lease, free_slots=0)

    assert list(ack.extended) == [assign.lease]
    assert (await stage.tune(tune.id)).lease_epoch == 1


async def test_a_crash_is_tried_again_and_three_are_the_end(stage: Stage) -> None:
    """The same tune kills trainers: FAILED."""
    gateway = await stage.gateway()
    tune = await stage.submit()
    trainer = await stage.trainer(gateway)

    for epoch in (1, 2, 3):
        assign = await trainer.take()
        assert assign.lease.epoch == epoch
        failed = pb.Failed(
            lease=assign.lease, report_seq=1, reason="ENGINE_DIED", details="SIGKILL", retryable=True, crashed=True
        )
        await trainer.report(failed=failed)

    assert (await stage.until(tune.id, TuneState.FAILED)).attempts == 3

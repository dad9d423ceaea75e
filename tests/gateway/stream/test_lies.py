"""A trainer lies: it is cut off with a status code, or told that its word counts for nothing; what it may write is
bounded by its own leases and object prefixes; its neighbour, at work for another tenant, notices nothing."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import pytest

from gateway.recorder import BACKLOG, BACKLOG_BYTES
from gateway.session import OUTBOX
from store import assets, events, keys, leases, reports
from store.states import TuneState
from store.tables import Tune
from tests.gateway.stream.conftest import LORA, Gateway, Stage, Trainer, finished
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

SHA256 = hashlib.sha256(LORA).hexdigest()
PUT = pb.METHOD_PUT


@dataclass
class Scene:
    """Two trainers on one gateway, each at work on a tune."""

    stage: Stage
    gateway: Gateway
    liar: Trainer
    own: pb.Lease
    """The liar's."""
    pictures: list[str]
    """Files of its tune."""
    neighbour: Trainer
    others: pb.Lease
    """The neighbour's; its tune is another tenant's."""
    rival: str
    """That tenant."""

    async def tune(self) -> Tune:
        """The liar's."""
        return await self.stage.tune(self.own.tune_id)

    async def warnings(self) -> list[str]:
        log = await events.list_events(self.stage.database, self.own.tune_id)
        return [event.body["reason"] for event in log if event.kind == "warning"]

    async def neighbour_finishes(self) -> None:
        """Its lease is as it was, and its result is committed, for its own tenant."""
        beat = await self.neighbour.beat(self.others, free_slots=0)
        assert list(beat.extended) == [self.others]
        ack = await self.neighbour.report(finished=await self.stage.upload_lora(self.others))
        assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
        lora = await assets.find(self.stage.database, self.rival, "others")
        assert (lora.asset_type, lora.tune_id) == ("lora", self.others.tune_id)
        assert await self.stage.objects.hash(lora.object_key or "") == (SHA256, len(LORA))

    async def neighbour_takes_over(self) -> None:
        """The liar's tune goes to it, and ends well."""
        assign = await self.neighbour.take()
        assert assign.lease == pb.Lease(tune_id=self.own.tune_id, epoch=self.own.epoch + 1)
        ack = await self.neighbour.report(finished=await self.stage.upload_lora(assign.lease))
        assert ack.outcome == pb.REPORT_OUTCOME_RECORDED
        assert (await self.tune()).state is TuneState.SUCCEEDED

    async def lease_ends(self) -> None:
        """Time passes as it does while gateways live: in steps shorter than half a lease."""
        for _ in range(4):
            await self.stage.database.move_clock(15)
            await leases.reap(self.stage.database, 45)


@pytest.fixture
async def scene(stage: Stage) -> Scene:
    gateway = await stage.gateway()
    acme, rival = stage.tenant, (await keys.create_tenant(stage.database, "rival")).id
    own = await stage.submit("own")
    liar = await stage.trainer(gateway)
    assign = await liar.take()
    await stage.until(own.id, TuneState.RUNNING)
    stage.tenant = rival
    others = await stage.submit("others")
    neighbour = await stage.trainer(gateway, "trainer-2")
    taken = await neighbour.take()
    await stage.until(others.id, TuneState.RUNNING)
    stage.tenant = acme
    pictures = [picture.file_id for picture in assign.pictures]
    return Scene(stage, gateway, liar, assign.lease, pictures, neighbour, taken.lease, rival)


# Cut off for what no trainer may say


def breaches(own: pb.Lease) -> dict[str, Any]:
    """Name -> message or bytes; `own` is the liar's lease."""
    picture = pb.ObjectName(method=pb.METHOD_GET, name="pictures/asset_1")
    lora = pb.UploadedObject(name="lora.safetensors", sha256=SHA256)
    metrics = [pb.StepMetrics(step=step) for step in (1, 2, 3, 4)]
    hello = pb.Hello(trainer_id="trainer-1", boot_id="boot-1", session_id="again", engines=["e"], slots=1)
    return {
        "garbage": b"\xff" * 64,
        "text that is no UTF-8": b"\x62\x04\x0a\x02\xc3\x28",  # Draining.reason
        "second Hello": {"hello": hello},
        "300 held attempts": {"heartbeat": pb.Heartbeat(seq=1, held=[pb.HeldAttempt(lease=own)] * 300)},
        "negative step in a beat": {"heartbeat": pb.Heartbeat(seq=1, held=[pb.HeldAttempt(lease=own, step=-1)])},
        "negative epoch": {"accepted": pb.Accepted(lease=pb.Lease(tune_id=own.tune_id, epoch=-1))},
        "report without a number": {"failed": pb.Failed(lease=own, reason="X")},
        "negative pictures": {"finished": pb.Finished(lease=own, report_seq=1, step=3, pictures=-1, lora=lora)},
        "loss that is no number": progress(own, [pb.StepMetrics(step=1, loss=float("nan"))]),
        "infinite rate": progress(own, [pb.StepMetrics(step=1, learning_rate=float("inf"))]),
        "unknown method": {
            "url_request": pb.UrlRequest(lease=own, objects=[pb.ObjectName(method=99, name="x")])  # type: ignore[arg-type]
        },
        "1001 URLs": {"url_request": pb.UrlRequest(lease=own, objects=[picture] * 1001)},
        "steps that go back": progress(own, metrics[1::-1]),
        "step told twice": progress(own, metrics[:1] * 2),
        "more steps than the tune has": {"progress": pb.Progress(lease=own, step=2**31 - 1, steps=2**31 - 1)},
        "metrics of a step that the tune has not": progress(own, metrics),
    }


def progress(lease: pb.Lease, metrics: list[pb.StepMetrics]) -> dict[str, pb.Progress]:
    return {"progress": pb.Progress(lease=lease, metrics=metrics)}


@pytest.mark.parametrize("name", breaches(pb.Lease()))
async def test_breach_of_the_protocol_cuts_the_trainer_off_and_no_tune_is_harmed(scene: Scene, name: str) -> None:
    """A trainer lies: it is cut off with a status code."""
    lie = breaches(scene.own)[name]

    await (scene.liar.call.write(lie) if isinstance(lie, bytes) else scene.liar.say(**lie))

    assert (await scene.liar.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await scene.tune()).state is TuneState.RUNNING  # its lease is left to end
    assert (await scene.tune()).step == 0
    await scene.neighbour_finishes()
    await scene.lease_ends()
    await scene.neighbour_takes_over()


async def test_message_of_10_megabytes_cuts_the_trainer_off(scene: Scene) -> None:
    await scene.liar.say(draining=pb.Draining(reason="x" * 10_000_000))

    assert (await scene.liar.end())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await scene.neighbour_finishes()
    await scene.lease_ends()
    await scene.neighbour_takes_over()


async def test_steps_that_go_back_in_a_later_message_cut_the_trainer_off(scene: Scene) -> None:
    await scene.liar.say(**progress(scene.own, [pb.StepMetrics(step=2, loss=0.5)]))

    await scene.liar.say(**progress(scene.own, [pb.StepMetrics(step=1, loss=0.1)]))

    assert await scene.liar.end() == (grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_BREACH")
    await scene.neighbour_finishes()


async def test_hello_with_300_attempts_is_refused(scene: Scene) -> None:
    held = [pb.HeldAttempt(lease=pb.Lease(tune_id=f"tune_{number}", epoch=1)) for number in range(300)]

    again = await scene.stage.trainer(scene.gateway, held=held)

    assert await again.end() == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    await scene.neighbour_finishes()


# Cut off for what cannot be true of its tune


def untruths(own: pb.Lease) -> dict[str, dict[str, Any]]:
    lora = pb.UploadedObject(name="lora.safetensors", sha256=SHA256, size_bytes=len(LORA))
    outside = pb.UploadedObject(name="../2/lora.safetensors", sha256=SHA256, size_bytes=len(LORA))
    ended: dict[str, Any] = {"lease": own, "report_seq": 1}
    foreign = pb.Verdict(file_id="asset_of_another_tenant", reason="TRUNCATED")
    return {
        "Finished before the last step": {"finished": pb.Finished(**ended, lora=lora, step=2, pictures=2)},
        "Finished after the last step": {"finished": pb.Finished(**ended, lora=lora, step=4, pictures=2)},
        "more pictures than there are": {"finished": pb.Finished(**ended, lora=lora, step=3, pictures=2**31 - 1)},
        "LoRA of another name": {"finished": pb.Finished(**ended, lora=outside, step=3, pictures=2)},
        "snapshot past the last step": snapshot_ready(own, 1, 4),
        "snapshot of another name": {"snapshot_ready": pb.SnapshotReady(**ended, step=2, object=outside)},
        "verdict on a file that it has not": {"event": pb.Event(**ended, verdict=foreign)},
        "sample past the last step": {"event": pb.Event(**ended, sample=pb.Sample(step=4, object=lora))},
        "cancelled past the last step": {"cancel_observed": pb.CancelObserved(**ended, step=4)},
        "returned past the last step": {"lease_returned": pb.LeaseReturned(**ended, step=4)},
        "recipe of another hash": recipe(own, '{"seed":7}', sha256="0" * 64),
        "recipe that is a list": recipe(own, "[1]"),
        "recipe that is no JSON": recipe(own, "{..."),
        "recipe of a thousand levels": recipe(own, '{"a":' * 1000 + "1" + "}" * 1000),
        "recipe with U+0000": recipe(own, r'{"a":"\u0000"}'),
        "recipe with half a letter": recipe(own, r'{"a":"\ud800"}'),
        "recipe with a number that is none": recipe(own, '{"a":NaN}'),
        "recipe with a number past all bounds": recipe(own, '{"a":1e999}'),
    }


def snapshot_ready(lease: pb.Lease, report_seq: int, step: int, body: bytes = LORA) -> dict[str, Any]:
    sha256 = hashlib.sha256(body).hexdigest()
    uploaded = pb.UploadedObject(name=f"snapshots/{step}.safetensors", sha256=sha256, size_bytes=len(body))
    return {"snapshot_ready": pb.SnapshotReady(lease=lease, report_seq=report_seq, step=step, object=uploaded)}


def recipe(lease: pb.Lease, text: str, sha256: str | None = None) -> dict[str, Any]:
    resolved = pb.ResolvedRecipe(json=text, sha256=sha256 or hashlib.sha256(text.encode()).hexdigest())
    return {"event": pb.Event(lease=lease, report_seq=1, resolved_recipe=resolved)}


@pytest.mark.parametrize("name", untruths(pb.Lease()))
async def test_report_that_cannot_be_true_cuts_the_trainer_off_and_another_takes_its_tune(
    scene: Scene, name: str
) -> None:
    await scene.stage.upload_lora(scene.own)

    await scene.liar.say(**untruths(scene.own)[name])

    assert await scene.liar.end() == (grpc.StatusCode.INVALID_ARGUMENT, "REPORT_UNTRUE")
    assert (await scene.tune()).state is TuneState.QUEUED
    assert (await scene.tune()).resolved_recipe is None
    await scene.neighbour_finishes()
    await scene.neighbour_takes_over()
    assert ((await scene.tune()).attempts, (await scene.tune()).rejected) == (2, [])


async def test_snapshot_whose_step_falls_cuts_the_trainer_off(scene: Scene) -> None:
    await scene.stage.put(f"incoming/{scene.own.tune_id}/1/snapshots/2.safetensors", LORA)
    await scene.liar.report(**snapshot_ready(scene.own, 1, 2))

    await scene.liar.say(**snapshot_ready(scene.own, 2, 1))

    assert await scene.liar.end() == (grpc.StatusCode.INVALID_ARGUMENT, "REPORT_UNTRUE")
    assert (await scene.tune()).snapshot_step == 2
    await scene.neighbour_finishes()
    await scene.neighbour_takes_over()


async def test_trainer_that_is_cut_off_for_the_same_lie_again_and_again_fails_its_tune_at_last(scene: Scene) -> None:
    await scene.neighbour.say(draining=pb.Draining())
    liar, own = scene.liar, scene.own

    for epoch in (1, 2, 3):
        own = pb.Lease(tune_id=own.tune_id, epoch=epoch)
        await liar.say(**untruths(own)["Finished before the last step"])
        assert await liar.end() == (grpc.StatusCode.INVALID_ARGUMENT, "REPORT_UNTRUE")
        liar = await scene.stage.trainer(scene.gateway, held=[pb.HeldAttempt(lease=own, result_pending=True)])
        assert [verdict.action for verdict in (await liar.hear("welcome")).held] == [pb.HELD_ACTION_ABORT]
        if epoch < 3:
            await liar.take()

    failed = await scene.stage.until(own.tune_id, TuneState.FAILED)
    assert "it has finished with step 2 of 3" in failed.status_details


# Said of what is not the trainer's own: it counts for nothing


def reports_of(lease: pb.Lease) -> dict[str, dict[str, Any]]:
    ended: dict[str, Any] = {"lease": lease, "report_seq": 1}
    return {
        "finished": {"finished": finished(lease)},
        "failed": {"failed": pb.Failed(**ended, reason="LIE", details="x")},
        "cancel_observed": {"cancel_observed": pb.CancelObserved(**ended)},
        "lease_returned": {"lease_returned": pb.LeaseReturned(**ended)},
        "snapshot_ready": snapshot_ready(lease, 1, 2),
        "warning": {"event": pb.Event(**ended, warning=pb.Warning(reason="LIE"))},
        "recipe": recipe(lease, '{"seed":7}'),
    }


@pytest.mark.parametrize("arm", reports_of(pb.Lease()))
@pytest.mark.parametrize("whose", ["another tenant's", "an epoch ago", "of an epoch to come", "of no tune", "../"])
async def test_report_of_what_is_not_the_trainers_own_is_stale_and_nothing_is_written(
    scene: Scene, arm: str, whose: str
) -> None:
    own, others = scene.own, scene.others
    lease = {
        "another tenant's": others,
        "an epoch ago": own,
        "of an epoch to come": pb.Lease(tune_id=own.tune_id, epoch=2**62),
        "of no tune": pb.Lease(tune_id="tune_none", epoch=1),
        "../": pb.Lease(tune_id=f"../{others.tune_id}", epoch=1),
    }[whose]
    if whose == "an epoch ago":
        await scene.liar.say(lease_returned=pb.LeaseReturned(lease=own, report_seq=1))
        assert (await scene.liar.take()).lease.epoch == 2
        await scene.stage.until(own.tune_id, TuneState.RUNNING)
        scene.own = pb.Lease(tune_id=own.tune_id, epoch=2)
    before = await scene.tune(), await neighbours_tune(scene)

    ack = await scene.liar.report(**reports_of(lease)[arm])
    while ack.lease != lease:  # that of what was given back
        ack = await scene.liar.hear("report_ack")

    assert ack.outcome == pb.REPORT_OUTCOME_STALE
    assert (await scene.tune(), await neighbours_tune(scene)) == before
    await scene.neighbour_finishes()


async def neighbours_tune(scene: Scene) -> Tune:
    ref = leases.LeaseRef(scene.others.tune_id, scene.others.epoch, "trainer-2")
    tune = await leases.is_current(scene.stage.database, ref)
    assert tune is not None
    return tune


async def test_whatever_else_is_said_of_anothers_tune_counts_for_nothing(scene: Scene) -> None:
    others = scene.others
    before = await neighbours_tune(scene)
    wanted = pb.ObjectName(method=PUT, name="lora.safetensors")

    await scene.liar.say(progress=pb.Progress(lease=others, phase=tune_pb2.TUNE_PHASE_SAVING, step=3, steps=3))
    await scene.liar.say(rejected=pb.Rejected(lease=others, reason="LIE"))
    await scene.liar.say(accepted=pb.Accepted(lease=others))
    revoked = [await scene.liar.hear("revoke")]
    await scene.liar.say(url_request=pb.UrlRequest(request_id=1, lease=others, objects=[wanted]))
    revoked += [await scene.liar.hear("revoke")]
    beat = await scene.liar.beat(others, scene.own, free_slots=0)
    held = [pb.HeldAttempt(lease=lease, result_pending=True) for lease in (others, scene.own)]
    again = await scene.stage.trainer(scene.gateway, held=held)
    welcome = await again.hear("welcome")

    assert [revoke.lease for revoke in revoked] == [others] * 2
    assert (list(beat.lost), list(beat.extended)) == ([others], [scene.own])
    assert [verdict.action for verdict in welcome.held] == [pb.HELD_ACTION_ABORT, pb.HELD_ACTION_SEND_RESULT]
    assert await neighbours_tune(scene) == before
    await scene.neighbour_finishes()


async def test_no_url_is_signed_beyond_the_attempts_own_objects(scene: Scene) -> None:
    own, others = scene.own.tune_id, scene.others.tune_id
    names = [
        "../lora.safetensors",
        f"../../{others}/1/lora.safetensors",
        f"/incoming/{others}/1/lora.safetensors",
        f"../../../loras/{own}/1/{SHA256}.safetensors",
        "snapshots/../lora.safetensors",
        "snapshots/\u0661.safetensors",  # a digit, but not of a key
        "snapshots/1.safetensors/../2.safetensors",
        "lora.safetensors?expires=1",
        "lora.safetensors\n",
    ]
    objects = [pb.ObjectName(method=PUT, name=name) for name in [*names, "lora.safetensors"]]

    await scene.liar.say(url_request=pb.UrlRequest(request_id=1, lease=scene.own, objects=objects))
    [signed] = (await scene.liar.hear("urls")).urls
    url = urlsplit(signed.url)
    query = dict(parse_qsl(url.query))
    key = url.path.removeprefix("/v1/objects/")

    assert key == f"incoming/{own}/1/lora.safetensors"
    for other in (f"incoming/{others}/1/lora.safetensors", f"incoming/{own}/2/lora.safetensors", f"loras/{own}"):
        assert not scene.stage.signer.verify("PUT", other, query)
    assert scene.stage.signer.verify("PUT", key, query)
    await scene.neighbour_finishes()


# Said of its own tune, and bounded


async def test_report_that_comes_again_is_recorded_once_and_a_gap_hides_nothing(scene: Scene) -> None:
    said = [
        pb.Event(lease=scene.own, report_seq=seq, warning=pb.Warning(reason=f"SAID_{seq}"))
        for seq in (1, 1, 5, 2, 2**63 - 1, 6)
    ]

    acks = [await scene.liar.report(event=event) for event in said]

    recorded, before = pb.REPORT_OUTCOME_RECORDED, pb.REPORT_OUTCOME_ALREADY_RECORDED
    assert [ack.outcome for ack in acks] == [recorded, before, recorded, before, recorded, before]
    assert await scene.warnings() == ["SAID_1", "SAID_5", f"SAID_{2**63 - 1}"]
    await scene.neighbour_finishes()
    await scene.liar.leave()
    await scene.lease_ends()
    await scene.neighbour_takes_over()  # its own reports count from one


async def test_phase_that_nobody_knows_changes_nothing(scene: Scene) -> None:
    phase = pb.Progress(lease=scene.own, phase=99, step=1)  # type: ignore[arg-type]
    async with scene.stage.database.wakeups.subscribe("tune") as changes:
        await scene.liar.say(progress=phase)
        while (await scene.tune()).step == 0:
            assert await changes.wait(10)

    assert (await scene.tune()).phase is None
    await scene.neighbour_finishes()


@pytest.mark.parametrize("body", [b"the bytes of A lora", b"the bytes", None])
async def test_lora_that_has_not_the_sha256_it_was_announced_with_is_no_success(
    scene: Scene, body: bytes | None
) -> None:
    await scene.neighbour_finishes()
    report = finished(scene.own) if body is None else await scene.stage.upload_lora(scene.own, body)

    await scene.liar.say(draining=pb.Draining())  # it gets no second try
    ack = await scene.liar.report(finished=report)

    assert ack.outcome == pb.REPORT_OUTCOME_RECORDED  # as a failed attempt
    assert (await scene.tune()).output_lora_ids == []
    await scene.neighbour_takes_over()


async def test_snapshot_that_has_not_the_sha256_it_was_announced_with_is_not_gone_on_from(scene: Scene) -> None:
    await scene.stage.put(f"incoming/{scene.own.tune_id}/1/snapshots/2.safetensors", b"the bytes of A lora")

    await scene.liar.report(**snapshot_ready(scene.own, 1, 2))

    assert await scene.warnings() == ["SNAPSHOT_DAMAGED"]
    assert (await scene.tune()).snapshot_key is None
    await scene.neighbour_finishes()
    await scene.liar.leave()
    await scene.lease_ends()
    await scene.neighbour_takes_over()


# An object overwritten after its report is not what gets committed


async def test_object_overwritten_before_it_is_moved_fails_the_attempt(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.neighbour_finishes()
    report = await scene.stage.upload_lora(scene.own)
    real = scene.stage.objects.move

    async def overwritten_first(source: str, destination: str) -> None:
        await scene.stage.put(source, LORA[::-1])  # as long as what was announced
        await real(source, destination)

    await scene.liar.say(draining=pb.Draining())
    with monkeypatch.context() as patch:
        patch.setattr(scene.stage.objects, "move", overwritten_first)
        await scene.liar.report(finished=report)

    assert (await scene.tune()).output_lora_ids == []
    await scene.neighbour_takes_over()


@pytest.mark.parametrize("moment", ["before it is hashed", "before the commit", "after the commit"])
async def test_object_overwritten_once_it_is_moved_is_not_what_gets_committed(
    scene: Scene, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = await scene.stage.upload_lora(scene.own)
    uploaded = f"incoming/{scene.own.tune_id}/1/lora.safetensors"
    hash_, finish = scene.stage.objects.hash, reports.finish

    async def overwritten_then_hashed(key: str) -> Any:
        await scene.stage.put(uploaded, LORA[::-1])
        return await hash_(key)

    async def overwritten_then_committed(*arguments: Any) -> Any:
        await scene.stage.put(uploaded, LORA[::-1])
        return await finish(*arguments)

    with monkeypatch.context() as patch:
        if moment == "before it is hashed":
            patch.setattr(scene.stage.objects, "hash", overwritten_then_hashed)
        if moment == "before the commit":
            patch.setattr(reports, "finish", overwritten_then_committed)
        await scene.liar.report(finished=report)
    await scene.stage.put(uploaded, LORA[::-1])
    again = await scene.liar.report(finished=report)

    assert again.outcome == pb.REPORT_OUTCOME_ALREADY_RECORDED
    [lora_id] = (await scene.tune()).output_lora_ids
    lora = await assets.find(scene.stage.database, scene.stage.tenant, lora_id)
    assert lora.sha256 == SHA256
    assert await scene.stage.objects.hash(lora.object_key or "") == (SHA256, len(LORA))
    await scene.neighbour_finishes()


# Too much of it


@pytest.fixture
async def stuck(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """No recipe is recorded before the event is set: the liar's backlog grows."""
    go, real = asyncio.Event(), reports.record_recipe

    async def wait(*arguments: Any) -> Any:
        await go.wait()
        return await real(*arguments)

    monkeypatch.setattr(reports, "record_recipe", wait)
    yield go
    go.set()


@pytest.mark.parametrize("letters", [100, 900_000])
async def test_flood_of_reports_cuts_the_trainer_off_before_they_fill_the_memory(
    scene: Scene, stuck: asyncio.Event, letters: int
) -> None:
    flood = recipe(scene.own, json.dumps({"a": "x" * letters}))
    enough = min(BACKLOG, BACKLOG_BYTES // letters) + 3
    for _ in range(enough - 1):
        await scene.liar.say(**flood)

    await scene.liar.say(**flood)

    assert await scene.liar.end() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REPORTS")
    stuck.set()
    await scene.neighbour_finishes()


async def test_trainer_that_does_not_read_its_answers_is_not_read_either(scene: Scene) -> None:
    deaf = await scene.stage.call(scene.gateway, scene.stage.tokens["trainer-1"])
    await deaf.write(pb.TrainerMessage(hello=scene.liar.hello))
    # Each answer has as many leases that are lost: 30 kB.
    held = [pb.HeldAttempt(lease=pb.Lease(tune_id=f"{number:0128}", epoch=1)) for number in range(256)]
    beat = pb.TrainerMessage(heartbeat=pb.Heartbeat(seq=1, held=held))

    said = 0
    try:
        while said < 8 * OUTBOX:
            await asyncio.wait_for(deaf.write(beat), 2)
            said += 1
    except TimeoutError:
        pass  # nobody takes it any more

    assert said < 8 * OUTBOX
    deaf.cancel()
    await scene.neighbour_finishes()

"""Commits what attempts report: events, snapshots, and how they ended. Called by sessions; knows no stream.

A trainer uploads to incoming/, where its signed PUT stays good for an hour. So an object is moved first, to a key for
which no PUT was ever signed, and hashed there: what was checked cannot change any more. The key is known before the
commit; a gateway that dies between the two leaves the next one to find the object where it is.

    incoming/{tune}/{epoch}/lora.safetensors ─move─> loras/{tune}/{epoch}/{sha256}.safetensors ─hash─> one transaction
"""

from __future__ import annotations

import contextlib
import hashlib

import grpc
import structlog

from gateway.assignments import incoming
from gateway.breaches import contradiction
from gateway.status import Refusal
from store import failpoints, leases, reports
from store.database import Database
from store.errors import ObjectsAway
from store.leases import LeaseRef, Snapshot
from store.objects import Objects
from store.objects.base import ObjectMissing
from store.reports import LoraResult, Outcome
from store.tables import Tune
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)

#: Arms of TrainerMessage that end an attempt.
TERMINAL = frozenset({"finished", "failed", "cancel_observed", "lease_returned"})
#: Arms that bear a report_seq.
REPORTS = TERMINAL | {"event", "snapshot_ready"}

SNAPSHOT_UNREAD = "SNAPSHOT_UNREAD"  # a trainer could not go on from a snapshot that is whole
TAKEN = "it was taken away while it was looked at"


class Results:
    """The way of a report into the store. Each is idempotent: sent twice, it is committed once."""

    def __init__(self, database: Database, objects: Objects, max_attempts: int) -> None:
        self._database = database
        self._objects = objects
        self._max_attempts = max_attempts

    async def record(self, lease: LeaseRef, message: pb.TrainerMessage) -> Outcome:
        """Commits one report.

        Raises:
            Refusal: It cannot be true: the trainer's build is at fault. The attempt has ended: it would only send the
                same again, and another trainer may fare better.
        """
        seq = getattr(message, message.WhichOneof("message") or "").report_seq
        try:
            tune = await leases.is_current(self._database, lease)
            if tune is not None and seq > tune.reported_seq and (untrue := contradiction(message, tune)) is not None:
                raise _untrue(untrue)
            outcome = await self._commit(lease, message, tune)
        except Refusal as refusal:
            log.warning(f"A report cannot be true: {refusal.message}", action="report_untrue", tune_id=lease.tune_id)
            details = f"The trainer's report cannot be true: {refusal.message}."
            await reports.fail(
                self._database,
                lease,
                seq,
                refusal.reason,
                details,
                retryable=True,
                crashed=False,
                max_attempts=self._max_attempts,
            )
            raise
        await failpoints.reach("report.recorded")
        return outcome

    async def _commit(self, lease: LeaseRef, message: pb.TrainerMessage, tune: Tune | None) -> Outcome:
        """`tune` is the lease's, as it was just before; None where it is stale. Every write asks the fence again."""
        match message.WhichOneof("message"):
            case "event":
                return await self._event(lease, message.event)
            case "snapshot_ready":
                return await self._snapshot(lease, message.snapshot_ready, tune)
            case "finished":
                return await self._finished(lease, message.finished, tune)
            case "failed":
                return await self._failed(lease, message.failed, tune)
            case "cancel_observed":
                observed = message.cancel_observed
                return await reports.observe_cancel(self._database, lease, observed.report_seq, observed.step)
            case "lease_returned":
                returned = message.lease_returned
                return await reports.give_back(self._database, lease, returned.report_seq, returned.step)
        raise AssertionError(message.WhichOneof("message"))

    async def _event(self, lease: LeaseRef, event: pb.Event) -> Outcome:
        kind = event.WhichOneof("event")
        if kind == "resolved_recipe":
            return await self._recipe(lease, event)
        body: dict[str, object] = {}
        if kind == "verdict":
            verdict = event.verdict
            body = {
                "file_id": verdict.file_id,
                "accepted": verdict.accepted,
                "reason": verdict.reason,
                "details": verdict.details,
            }
        elif kind == "warning":
            body = {"reason": event.warning.reason, "details": event.warning.details}
        elif kind == "sample":
            # The picture stays where it is until samples become assets; that it was made is told already.
            body = {"step": event.sample.step, "prompt": event.sample.prompt, "asset_id": ""}
        assert kind is not None  # the rules want one
        return await reports.record_event(self._database, lease, event.report_seq, kind, body)

    async def _recipe(self, lease: LeaseRef, event: pb.Event) -> Outcome:
        recipe = event.resolved_recipe
        if hashlib.sha256(recipe.json.encode()).hexdigest() != recipe.sha256:
            raise _untrue("a resolved recipe does not have the SHA-256 that it claims")
        return await reports.record_recipe(self._database, lease, event.report_seq, recipe.json, recipe.sha256)

    async def _snapshot(self, lease: LeaseRef, ready: pb.SnapshotReady, tune: Tune | None) -> Outcome:
        if ready.object.name != f"snapshots/{ready.step}.safetensors":
            raise _untrue(f"a snapshot of step {ready.step} is named {ready.object.name!r}")
        if (known := await self._known(lease, ready.report_seq, tune)) is not None:
            return known
        key = f"snapshots/{lease.tune_id}/{lease.epoch}/{ready.step}-{ready.object.sha256}.safetensors"
        if (fault := await self._adopt(lease, ready.object, key)) is not None:
            warning = {"reason": "SNAPSHOT_DAMAGED", "details": f"The snapshot of step {ready.step}: {fault}."}
            return await reports.record_event(self._database, lease, ready.report_seq, "warning", warning)
        snapshot = Snapshot(key, ready.step, ready.object.sha256, ready.object.size_bytes)
        outcome, needless = await reports.record_snapshot(self._database, lease, ready.report_seq, snapshot)
        if needless is not None:  # half a gigabyte a minute is no matter for the sweeper
            with contextlib.suppress(ObjectsAway):
                await self._objects.delete(needless)
        return outcome

    async def _finished(self, lease: LeaseRef, finished: pb.Finished, tune: Tune | None) -> Outcome:
        lora = finished.lora
        if lora.name != "lora.safetensors":
            raise _untrue(f"a LoRA is named {lora.name!r}")
        key = f"loras/{lease.tune_id}/{lease.epoch}/{lora.sha256}.safetensors"
        if (known := await self._known(lease, finished.report_seq, tune)) is not None:
            return known
        if (fault := await self._adopt(lease, lora, key)) is not None:
            log.warning(f"A LoRA was refused: {fault}", action="result_refused", tune_id=lease.tune_id)
            return await reports.fail(
                self._database,
                lease,
                finished.report_seq,
                "RESULT_DAMAGED",
                f"The LoRA did not arrive whole: {fault}.",
                retryable=True,
                crashed=False,
                max_attempts=self._max_attempts,
            )
        result = LoraResult(
            object_key=key,
            sha256=lora.sha256,
            size_bytes=lora.size_bytes,
            step=finished.step,
            final_loss=finished.final_loss,
            pictures=finished.pictures,
            data={"data_type": "fp16", "file_format": "safetensors"},
        )
        outcome, asset_id = await reports.finish(self._database, lease, finished.report_seq, result)
        log.info(
            f"A result is {outcome}", action="result", tune_id=lease.tune_id, epoch=lease.epoch, lora_asset_id=asset_id
        )
        return outcome

    async def _failed(self, lease: LeaseRef, failed: pb.Failed, tune: Tune | None) -> Outcome:
        reason = failed.reason
        if reason == reports.SNAPSHOT_REFUSED and await self._has_whole_snapshot(tune):
            reason = SNAPSHOT_UNREAD
        return await reports.fail(
            self._database,
            lease,
            failed.report_seq,
            reason,
            failed.details,
            retryable=failed.retryable,
            crashed=failed.crashed,
            max_attempts=self._max_attempts,
        )

    async def _has_whole_snapshot(self, tune: Tune | None) -> bool:
        """Whether the tune's newest snapshot is what was recorded: were a trainer's word enough, one that is at fault,
        or cut off from the objects, could throw away a night's work of others.
        """
        if tune is None or tune.snapshot_key is None:
            return False
        try:
            return await self._objects.hash(tune.snapshot_key) == (tune.snapshot_sha256, tune.snapshot_size_bytes)
        except ObjectMissing:
            return False

    async def _known(self, lease: LeaseRef, report_seq: int, tune: Tune | None) -> Outcome | None:
        """What is to be answered without a look at the object; None where it is still to be committed."""
        if tune is None:
            # The fence says whether this very report ended the attempt, or the lease was lost. Nothing is written.
            return await reports.observe_cancel(self._database, lease, report_seq, 0)
        return Outcome.ALREADY_RECORDED if tune.reported_seq >= report_seq else None

    async def _adopt(self, lease: LeaseRef, uploaded: pb.UploadedObject, key: str) -> str | None:
        """Moves an uploaded object to its final key and verifies it there. Returns what is wrong with it, or None."""
        if await self._objects.stat(key) is None:
            source = incoming(lease, uploaded.name)
            size = await self._objects.stat(source)
            if size is None:
                return "it was never uploaded"
            if size != uploaded.size_bytes:
                return f"it has {size} bytes, {uploaded.size_bytes} were announced"
            try:
                await self._objects.move(source, key)
            except ObjectMissing:
                return TAKEN
            await failpoints.reach("object.moved")
        try:
            sha256, size = await self._objects.hash(key)
        except ObjectMissing:  # swept: the lease has just been lost, and the fence will say so
            return TAKEN
        await failpoints.reach("object.hashed")
        if (sha256, size) == (uploaded.sha256, uploaded.size_bytes):
            return None
        await self._objects.delete(key)
        return f"its SHA-256 is {sha256}, {uploaded.sha256} was announced"


def _untrue(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "REPORT_UNTRUE", message)

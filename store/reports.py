"""What an attempt reports: progress, events, snapshots, and how it ended. Called by gateway/results and progress for
the messages of the same names; each is one transaction behind the fence of leases.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from store.assets import described, insert_asset
from store.attempts import LeaseRef, Snapshot, newest_snapshot
from store.database import Database, Transaction
from store.dialect import now
from store.events import KINDS, Entry, newest_step, status_changed
from store.leases import held, holds
from store.moves import POISON_LIMIT, change, end_attempt, lock, move
from store.states import LEASED, TuneState
from store.tables import Tune
from store.tunes import lora_asset_id

#: A trainer's reason for an attempt that could not go on from its snapshot.
SNAPSHOT_REFUSED = "SNAPSHOT_REFUSED"


class Outcome(StrEnum):
    """What became of a report."""

    RECORDED = "RECORDED"
    ALREADY_RECORDED = "ALREADY_RECORDED"
    STALE = "STALE"


@dataclass(frozen=True)
class LoraResult:
    """A finished LoRA, hashed and moved to its final key."""

    object_key: str
    """Where it lies, for good."""
    sha256: str
    """Of its bytes, hexadecimal."""
    size_bytes: int
    """Its size."""
    step: int
    """Steps made."""
    final_loss: float
    """Mean loss of the last tenth of the steps."""
    pictures: int
    """Trained on."""
    data: dict[str, Any] = field(default_factory=dict)
    """LoraData in the JSON profile's names; engine, trigger_words and checkpoint are filled in from the tune."""


async def record_progress(
    db: Database, lease: LeaseRef, phase: str | None, step: int, metrics: Sequence[dict[str, Any]] = ()
) -> bool:
    """Stores phase and step, and the metrics as one event: to be called with a chunk, not with each step. False: stale.

    `phase`: TunePhase's lower-case name, such as "training". `metrics`: step, loss, learning_rate, steps_per_second.
    Of these what is not newer than the epoch's log is left out: its commit was thought to have failed, or the trainer
    has told another gateway more while this one hung.
    """
    async with db.write("progress") as transaction:
        tune = await held(transaction, lease)
        if tune is None:
            return False
        if metrics and metrics[0]["step"] <= tune.step:  # told before, or a snapshot was quicker
            newest_told = await newest_step(transaction, lease.tune_id, lease.epoch)
            metrics = [each for each in metrics if each["step"] > newest_told]
        entries: list[Entry] = []
        if metrics:
            entries.append(("metrics", {"steps": [{**each, "epoch": lease.epoch} for each in metrics]}))
        # Steps never fall in an epoch, whatever is told late; and updated_at does not count progress.
        values: dict[str, Any] = {"step": max(step, tune.step), "updated_at": tune.updated_at}
        if phase is not None and tune.state is TuneState.RUNNING:
            values["phase"] = phase
        if metrics:
            newest = metrics[-1]
            values |= {"loss": newest.get("loss"), "steps_per_second": newest.get("steps_per_second")}
        after = await change(transaction, tune, entries, **values)
        transaction.wake("tune", after.id)
    return True


async def record_event(db: Database, lease: LeaseRef, report_seq: int, kind: str, body: dict[str, Any]) -> Outcome:
    """Appends to the log. A refused picture's verdict also goes into the tune's result."""
    assert kind in KINDS, f"{kind!r} is no arm of TuneEventBody"
    async with db.write("event") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        values: dict[str, Any] = {}
        if kind == "verdict" and not body.get("accepted") and body["file_id"] not in (*tune.rejected, *tune.unready):
            values = {"rejected": [*tune.rejected, body["file_id"]], "available": max((tune.available or 0) - 1, 0)}
            if tune.continue_on_rejection:
                values["status_details"] = f"{tune.status_details} {_left_out(body)}".lstrip()
        await change(transaction, tune, [(kind, body)], reported_seq=report_seq, **values)
    return Outcome.RECORDED


def _left_out(verdict: dict[str, Any]) -> str:
    """A sentence for the tune's owner."""
    why = str(verdict.get("details") or verdict.get("reason") or "it cannot be used").rstrip(".")
    return f"Goes on without {verdict['file_id']}: {why}."


async def record_recipe(db: Database, lease: LeaseRef, report_seq: int, recipe_json: str, sha256: str) -> Outcome:
    """Keeps what the first attempt fixed, byte for byte. A later one changes nothing: the first stays."""
    async with db.write("recipe") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        if tune.resolved_recipe is not None:
            await change(transaction, tune, [], reported_seq=report_seq)
            return Outcome.RECORDED
        entry: Entry = ("recipe_resolved", {"recipe": json.loads(recipe_json), "sha256": sha256})
        kept = {"resolved_recipe": recipe_json, "resolved_recipe_sha256": sha256}
        await change(transaction, tune, [entry], reported_seq=report_seq, **kept)
    return Outcome.RECORDED


async def record_snapshot(
    db: Database, lease: LeaseRef, report_seq: int, snapshot: Snapshot
) -> tuple[Outcome, str | None]:
    """Keeps a place to go on from beside the one before it, and forgives the crashes before it. An older one than what
    is kept changes nothing. Also returns the key of an object that is not needed any more.
    """
    async with db.write("snapshot") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if isinstance(tune, Outcome):
            return tune, None
        before = newest_snapshot(tune)
        if before is not None and snapshot.step <= before.step:
            await change(transaction, tune, [], reported_seq=report_seq)
            kept = {before.object_key, (tune.earlier_snapshot or {}).get("object_key")}
            return Outcome.RECORDED, None if snapshot.object_key in kept else snapshot.object_key
        await change(
            transaction,
            tune,
            [("snapshot", {"step": snapshot.step})],
            reported_seq=report_seq,
            crashes=0,
            step=max(tune.step, snapshot.step),
            **_kept(snapshot),
            earlier_snapshot=None if before is None else asdict(before),
        )
    # Nobody reads it now: this lease's trainer has read its own when it began, and no other one is given any.
    return Outcome.RECORDED, None if tune.earlier_snapshot is None else tune.earlier_snapshot["object_key"]


def _kept(snapshot: Snapshot | None) -> dict[str, Any]:
    return {
        "snapshot_key": snapshot and snapshot.object_key,
        "snapshot_step": snapshot and snapshot.step,
        "snapshot_sha256": snapshot and snapshot.sha256,
        "snapshot_size_bytes": snapshot and snapshot.size_bytes,
    }


async def finish(db: Database, lease: LeaseRef, report_seq: int, result: LoraResult) -> tuple[Outcome, str | None]:
    """SUCCEEDED: the LoRA asset, the tune, the counters and the event in one transaction. Also returns the asset's id.

    Where a cancel was committed first, the tune is CANCELLED, the answer is (RECORDED, None), and the object is the
    sweeper's.
    """
    async with db.write("finish") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if tune is Outcome.ALREADY_RECORDED:
            ended = await lock(transaction, lease.tune_id)
            return tune, next(iter(ended.output_lora_ids), None) if ended is not None else None
        if isinstance(tune, Outcome):
            return tune, None
        ending: dict[str, Any] = {"reported_seq": report_seq, "step": max(tune.step, result.step)}
        if tune.cancel_requested_at is not None:
            await end_attempt(transaction, tune, "CANCELLED", counts=False, **ending)
            return Outcome.RECORDED, None
        asset = await insert_asset(transaction, _lora(tune, result))
        ending |= {"final_loss": result.final_loss, "available": result.pictures, "output_lora_ids": [asset.id]}
        entry = status_changed(TuneState.SUCCEEDED, "SUCCEEDED", "", tune.attempts)
        await move(transaction, tune, TuneState.SUCCEEDED, [entry], succeeded_at=now(), **ending)
    return Outcome.RECORDED, asset.id


def _lora(tune: Tune, result: LoraResult) -> dict[str, Any]:
    data = {
        "engine": tune.engine,
        "data_type": "fp16",
        "file_format": "safetensors",
        "trigger_words": tune.trigger_words,
        "checkpoint": tune.checkpoint_id,
        **result.data,
    }
    return {
        "id": lora_asset_id(tune.id),
        "tenant_id": tune.tenant_id,
        "asset_type": "lora",
        "name": tune.name,
        "status": "ready",
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "object_key": result.object_key,
        "file_structure": "single_file",
        "tune_id": tune.id,
        "role": "lora",
        **described(data),
    }


async def fail(
    db: Database,
    lease: LeaseRef,
    report_seq: int,
    reason: str,
    details: str,
    *,
    retryable: bool,
    crashed: bool,
    max_attempts: int = POISON_LIMIT,
) -> Outcome:
    """The attempt broke: back to the queue where another may fare better, else FAILED; CANCELLED where that was asked
    for.

    A crash counts towards the limit, and so does a retryable failure: neither goes round for ever. A snapshot that was
    refused is no fault of the tune's: the next attempt goes on from the one before it, and there are two at most.
    """
    async with db.write("fail") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        refused = reason == SNAPSHOT_REFUSED and tune.snapshot_key is not None
        fallen_back = _fallen_back(tune) if refused else {}
        await end_attempt(
            transaction,
            tune,
            reason,
            details,
            counts=(crashed or retryable) and not refused,
            retryable=retryable,
            limit=max_attempts,
            reported_seq=report_seq,
            **fallen_back,
        )
    return Outcome.RECORDED


def _fallen_back(tune: Tune) -> dict[str, Any]:
    earlier = None if tune.earlier_snapshot is None else Snapshot(**tune.earlier_snapshot)
    return {**_kept(earlier), "earlier_snapshot": None, "step": earlier.step if earlier is not None else 0}


async def observe_cancel(db: Database, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
    """The trainer has stopped since the tune was cancelled: CANCELLED. Back to the queue where nobody had cancelled
    it.
    """
    return await _let_go(db, lease, report_seq, step, "CANCEL_OBSERVED")


async def give_back(db: Database, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
    """The trainer leaves: back to the queue; costs no attempt."""
    return await _let_go(db, lease, report_seq, step, "GIVEN_BACK")


async def _let_go(db: Database, lease: LeaseRef, report_seq: int, step: int, reason: str) -> Outcome:
    async with db.write("let_go") as transaction:
        tune = await _reported(transaction, lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        ending: dict[str, Any] = {"reported_seq": report_seq, "step": max(tune.step, step)}
        if tune.cancel_requested_at is None and tune.state is TuneState.RUNNING:
            ending["attempts"] = tune.attempts - 1
        await end_attempt(transaction, tune, reason, counts=False, **ending)
    return Outcome.RECORDED


async def _reported(transaction: Transaction, lease: LeaseRef, report_seq: int) -> Tune | Outcome:
    """The tune, locked, where this report is to be recorded; else what became of it. Reports come in order, so one
    whose number is not above the last recorded one's was recorded, also where it ended the attempt.
    """
    tune = await lock(transaction, lease.tune_id)
    if tune is None or not holds(lease, tune):
        return Outcome.STALE
    if report_seq <= tune.reported_seq:
        return Outcome.ALREADY_RECORDED
    return tune if tune.state in LEASED else Outcome.STALE

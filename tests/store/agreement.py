"""Whether the store did what its model says: the same answers, the same rows. Used by test_machine.py.

Calls that were made at once were taken in some order, which nobody tells. So every order is tried on a copy of the
model, until one explains all answers and all rows; and a call that passes over locked rows may have passed over
whatever the others had locked.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from store.attempts import Snapshot, newest_snapshot
from store.tables import Tune as TuneRow
from tests.store.calls import Call
from tests.store.invariants import Rows
from tests.store.model import Model, Tune
from tests.store.model_rows import Moment

#: Of a lease's end, seconds: for what a run takes, while the model's clock stands still.
TOLERANCE = 1_000.0


def explained(model: Model, calls: Sequence[Call], answers: Sequence[Any], before: Rows, after: Rows) -> Model:
    """The model after the calls. AssertionError: no order of them explains the answers and the rows."""
    faults: list[str] = []
    for order in itertools.permutations(range(len(calls))):
        for passed in itertools.product(*(_may_pass(calls, which, before, after) for which in range(len(calls)))):
            tried = model.copy()
            expected = {which: calls[which].expect(tried, answers[which], passed[which]) for which in order}
            found = [
                f"{calls[which].told} gave {answers[which]}, and should give {expected[which]}"
                for which in order
                if answers[which] != expected[which]
            ]
            found += [] if found else differences(tried, after)
            if not found:
                _take_times(tried, after)
                return tried
            faults = faults or found
    raise AssertionError("\n".join([*(call.told for call in calls), *faults]))


def _may_pass(calls: Sequence[Call], which: int, before: Rows, after: Rows) -> Iterator[Collection[str]]:
    """What that call may have passed over: nothing, or any of the rows that the others locked."""
    yield ()
    if not calls[which].passes or len(calls) == 1:
        return
    locked = {id for other, call in enumerate(calls) if other != which for id in call.rows}
    locked |= {id for id, row in after.tunes.items() if id not in before.tunes or _changed(before.tunes[id], row)}
    locked |= {after.tunes[id].tenant_id for id in locked if id in after.tunes}
    for many in range(1, len(locked) + 1):
        yield from itertools.combinations(sorted(locked), many)


def _changed(before: TuneRow, after: TuneRow) -> bool:
    return (before.state, before.event_seq) != (after.state, after.event_seq)


def differences(model: Model, rows: Rows) -> list[str]:
    """Where the rows are not the model's, each as a sentence."""
    found = [f"{id} should not be there" for id in rows.tunes.keys() - model.tunes.keys()]
    for tune in model.tunes.values():
        if tune.id not in rows.tunes:
            found.append(f"{tune.id} should be there")
            continue
        for name, wanted, there in _compared(model, tune, rows):
            if wanted != there:
                found.append(f"{tune.id}: {name} should be {wanted}, and is {there}")
    for id, trainer in model.trainers.items():
        wanted_trainer = (trainer.hello.session_id, trainer.hello.boot_id, trainer.free_slots, trainer.connected)
        row = rows.trainers[id]
        there_trainer = (row.session_id, row.boot_id, row.free_slots, row.disconnected_at is None)
        if wanted_trainer != there_trainer:
            found.append(f"{id} should be {wanted_trainer}, and is {there_trainer}")
    return found


def _compared(model: Model, tune: Tune, rows: Rows) -> Iterator[tuple[str, Any, Any]]:
    """(what, as the model has it, as the row has it)."""
    row = rows.tunes[tune.id]
    for name in ("tenant_id", "name", "request_id", "state", "attempts", "crashes", "reported_seq", "step", "phase"):
        yield name, getattr(tune, name), getattr(row, name)
    yield "lease", (tune.epoch, tune.holder), (row.lease_epoch, row.lease_trainer_id)
    yield "cancel", tune.cancel, row.cancel_requested_at is not None
    yield "deleted", tune.deleted, row.deleted_at is not None
    yield "recipe", tune.recipe, row.resolved_recipe
    yield "snapshots", tune.snapshots, _snapshots(row)
    yield "lora", tune.lora and tune.lora.object_key, _lora_key(rows, tune.id)
    yield "time left", *_times_left(model, tune, rows, row)
    kept = ("status", "reason", "attempt", "step", "steps", "sha256")  # of the bodies; the rest is for people
    yield (
        "log",
        [(entry.epoch, entry.kind, *(entry.body.get(name) for name in kept)) for entry in tune.log],
        [(event.epoch, event.kind, *(event.body.get(name) for name in kept)) for event in rows.log[tune.id]],
    )


def _times_left(model: Model, tune: Tune, rows: Rows, row: TuneRow) -> tuple[float | None, float | None]:
    """Of the lease: the same twice where they are near enough."""
    wanted = None if tune.expires_at is None else tune.expires_at - model.now
    there = None if row.lease_expires_at is None else (row.lease_expires_at - rows.now).total_seconds()
    if wanted is not None and there is not None and abs(wanted - there) < TOLERANCE:
        return wanted, wanted
    return wanted, there


def _snapshots(row: TuneRow) -> list[Snapshot]:
    newest = newest_snapshot(row)
    earlier = None if row.earlier_snapshot is None else Snapshot(**row.earlier_snapshot)
    return [each for each in (earlier, newest) if each is not None]


def _lora_key(rows: Rows, tune_id: str) -> str | None:
    return next((asset.object_key for asset in rows.loras if asset.tune_id == tune_id), None)


def _take_times(model: Model, rows: Rows) -> None:
    """What happened at one time by the model's clock has the order that the rows show: a call's statements lie between
    another's, and whose time comes first is not whose commit does.
    """
    moments = itertools.count(1)

    def ordered(moment: Moment) -> Moment:
        return moment[0], next(moments)

    for row in sorted(rows.tunes.values(), key=lambda each: (each.created_at, each.id)):
        model.tunes[row.id].created = ordered(model.tunes[row.id].created)
    leased = [row for row in rows.tunes.values() if row.lease_expires_at is not None]
    for row in sorted(leased, key=lambda each: (each.lease_expires_at, each.id)):
        tune = model.tunes[row.id]
        assert tune.expires is not None
        tune.expires = ordered(tune.expires)
    served = [tenant for tenant in rows.tenants.values() if tenant.served_at is not None]
    for tenant in sorted(served, key=lambda each: (each.served_at, each.id)):
        model.tenants[tenant.id].served = ordered(model.tenants[tenant.id].served)

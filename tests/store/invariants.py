"""What must hold of the rows after every step, whatever was done: read by SQL alone, and held against the rows of the
step before. Used by test_machine.py; knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from store.database import Database
from store.dialect import now
from store.states import LEASED, TERMINAL, TuneState
from store.tables import Asset, Event, Queue, Tenant, Trainer, Tune, record
from store.tables import assets as assets_table
from store.tables import events as events_table
from store.tables import queues as queues_table
from store.tables import tenants as tenants_table
from store.tables import trainers as trainers_table
from store.tables import tunes as tunes_table
from store.webhooks.tables import webhook_deliveries


@dataclass(frozen=True)
class Rows:
    """Everything that is written, as it stands."""

    now: datetime
    """By the database's clock."""
    tunes: dict[str, Tune]
    """By id."""
    log: dict[str, list[Event]]
    """By the tune's id, in the order of their seq."""
    tenants: dict[str, Tenant]
    """By id."""
    queues: list[Queue]
    """Of all tenants."""
    loras: list[Asset]
    """Of all tunes."""
    trainers: dict[str, Trainer]
    """By id."""
    webhooks: dict[str, list[str]]
    """Types of the messages about each tune, in their order. Each tenant has an endpoint that is told of all."""


async def read(database: Database) -> Rows:
    """The rows. Nobody writes meanwhile."""
    async with database.read() as connection:

        async def all_of(statement: Any, model: Any) -> list[Any]:
            return [record(model, row) for row in await connection.execute(statement)]

        tunes = await all_of(_TUNES, Tune)
        log: dict[str, list[Event]] = {tune.id: [] for tune in tunes}
        for event in await all_of(_EVENTS, Event):
            log[event.tune_id].append(event)
        webhooks: dict[str, list[str]] = {tune.id: [] for tune in tunes}
        for message in await connection.execute(_WEBHOOKS):
            webhooks[message.tune_id].append(message.event_type)
        return Rows(
            now=(await connection.execute(_NOW)).scalar_one(),
            tunes={tune.id: tune for tune in tunes},
            log=log,
            tenants={each.id: each for each in await all_of(_TENANTS, Tenant)},
            queues=await all_of(_QUEUES, Queue),
            loras=await all_of(_LORAS, Asset),
            trainers={each.trainer_id: each for each in await all_of(_TRAINERS, Trainer)},
            webhooks=webhooks,
        )


_NOW = select(now())
_TUNES = select(tunes_table)
_EVENTS = select(events_table).order_by(events_table.c.seq)
_TENANTS = select(tenants_table)
_QUEUES = select(queues_table)
_LORAS = select(assets_table).where(assets_table.c.role == "lora")
_TRAINERS = select(trainers_table)
_WEBHOOKS = select(webhook_deliveries.c.tune_id, webhook_deliveries.c.event_type).order_by(
    webhook_deliveries.c.created_at, webhook_deliveries.c.message_id
)


def violations(before: Rows, after: Rows) -> list[str]:
    """What does not hold, each as a sentence."""
    found = [*_counters(after), *_unique(after)]
    for tune in after.tunes.values():
        found += _of_one(after, tune)
        if tune.id in before.tunes:
            found += _of_its_way(before.tunes[tune.id], tune)
            found += _of_its_log(before.log[tune.id], after.log[tune.id])
    found += [f"{id} is gone" for id in before.tunes.keys() - after.tunes.keys()]
    return found


def _of_its_way(before: Tune, after: Tune) -> Iterator[str]:
    if before.state in TERMINAL and _kept(before) != _kept(after):
        yield f"{after.id}: {before.state} is final, and was changed"
    if after.lease_epoch < before.lease_epoch:
        yield f"{after.id}: its epoch fell from {before.lease_epoch} to {after.lease_epoch}"
    # A snapshot that was refused is given up when its attempt ends, and the steps since the one before it with it.
    given_up = _reached(after) < _reached(before)
    if after.lease_epoch == before.lease_epoch and after.step < before.step and not given_up:
        yield f"{after.id}: its step fell from {before.step} to {after.step} within epoch {after.lease_epoch}"
    if after.lease_epoch == before.lease_epoch and after.state in LEASED and given_up:
        yield f"{after.id}: its snapshot was given up while epoch {after.lease_epoch} goes on"
    if after.state in LEASED and after.step < (after.snapshot_step or 0):
        yield f"{after.id}: epoch {after.lease_epoch} is at {after.step}, and began at {after.snapshot_step} or later"
    if before.resolved_recipe is not None and after.resolved_recipe != before.resolved_recipe:
        yield f"{after.id}: its recipe was changed"
    if before.cancel_requested_at is not None and after.cancel_requested_at is None:
        yield f"{after.id}: its cancel was forgotten"
    if before.cancel_requested_at is not None and after.lease_epoch > before.lease_epoch:
        yield f"{after.id}: cancelled, and claimed again"
    if before.cancel_requested_at is not None and after.state not in (before.state, *LEASED, TuneState.CANCELLED):
        yield f"{after.id}: cancelled, and {after.state} now"


def _reached(tune: Tune) -> int:
    """The step of its newest snapshot; below all steps where it has none."""
    return -1 if tune.snapshot_step is None else tune.snapshot_step


def _of_its_log(before: list[Event], after: list[Event]) -> Iterator[str]:
    for old, new in zip(before, after, strict=False):
        if (old.seq, old.epoch, old.kind, old.body) != (new.seq, new.epoch, new.kind, new.body):
            yield f"{old.tune_id}: its event {old.seq} was changed"


def _kept(tune: Tune) -> dict[str, Any]:
    """A finished tune, but for its deletion."""
    return tune.model_dump(exclude={"deleted_at", "updated_at"})


def _of_one(rows: Rows, tune: Tune) -> Iterator[str]:
    log = rows.log[tune.id]
    if [event.seq for event in log] != list(range(1, tune.event_seq + 1)):
        yield f"{tune.id}: the seqs of its events have gaps: {[event.seq for event in log]} of {tune.event_seq}"
    epochs = [event.epoch for event in log]
    if epochs != sorted(epochs) or epochs[-1] > tune.lease_epoch:
        yield f"{tune.id}: an old epoch's event came after a newer one's: {epochs}"
    told = [event.body["status"] for event in log if event.kind == "status_changed"]
    if told[-1] != tune.state.public:
        yield f"{tune.id}: {tune.state}, and its log says {told[-1]}"
    claimed = [event.epoch for event in log if event.body.get("reason") == "ASSIGNED"]
    if claimed != list(range(1, tune.lease_epoch + 1)):
        yield f"{tune.id}: it was given away in epochs {claimed}, and stands at {tune.lease_epoch}"
    moved = [event.body for event in log if event.kind == "status_changed"]
    wanted = [f"tune.{body['status']}" for body in moved if body["reason"] == "STARTED" or _is_final(body["status"])]
    if rows.webhooks[tune.id] != wanted:
        yield f"{tune.id}: its webhooks tell {rows.webhooks[tune.id]}, and its log {wanted}"
    loras = [asset.id for asset in rows.loras if asset.tune_id == tune.id]
    if len(loras) != (tune.state is TuneState.SUCCEEDED) or loras != tune.output_lora_ids:
        yield f"{tune.id}: {tune.state}, with LoRAs {loras}, and {tune.output_lora_ids} shown"
    if (tune.ended_at is not None) != (tune.state in TERMINAL):
        yield f"{tune.id}: {tune.state}, and ended at {tune.ended_at}"


def _is_final(status: str) -> bool:
    return status in {state.public for state in TERMINAL}


def _counters(rows: Rows) -> Iterator[str]:
    for tenant in rows.tenants.values():
        states = [tune.state for tune in rows.tunes.values() if tune.tenant_id == tenant.id]
        counted = (states.count(TuneState.QUEUED), sum(state in LEASED for state in states))
        if (tenant.queued, tenant.running) != counted:
            yield f"{tenant.name} counts {tenant.queued} queued and {tenant.running} running of {counted}"
        if tenant.running > tenant.running_limit:
            yield f"{tenant.name} has {tenant.running} running and may have {tenant.running_limit}"
    waiting = Counter(
        (tune.tenant_id, tune.engine, tune.memory_class)
        for tune in rows.tunes.values()
        if tune.state is TuneState.QUEUED
    )
    counters = {(each.tenant_id, each.engine, each.memory_class): each.queued for each in rows.queues if each.queued}
    if counters != waiting:
        yield f"the queues count {counters} of {waiting}"


def _unique(rows: Rows) -> Iterator[str]:
    requests = Counter((tune.tenant_id, tune.request_id) for tune in rows.tunes.values() if tune.request_id)
    yield from (f"{requested} made {times} tunes" for requested, times in requests.items() if times > 1)
    living = Counter((tune.tenant_id, tune.name) for tune in rows.tunes.values() if tune.deleted_at is None)
    yield from (f"{times} living tunes are called {name}" for name, times in living.items() if times > 1)

"""Tunes as their owners see them: submit, find, list, cancel, delete. Called by gateway/tunes and the metrics; what
trainers do with tunes is in leases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, or_, select

from store.database import Database, Transaction
from store.dialect import Time, holds_all, now
from store.errors import NotFound
from store.events import status_changed
from store.moves import change, lock, move
from store.states import LEASED, TERMINAL, TuneState
from store.submission import Named, NewTune, Submitted, check_named, check_submission, write_submissions
from store.tables import IS_QUEUED, Tune, record, tunes
from store.verdicts import foretell, look_up

__all__ = [
    "Named",
    "NewTune",
    "QueueStats",
    "Submitted",
    "TuneFilter",
    "cancel",
    "check",
    "delete",
    "find",
    "list_tunes",
    "lora_asset_id",
    "queue_order",
    "queue_stats",
    "submit",
    "unfit",
]


@dataclass(frozen=True)
class TuneFilter:
    """Which tunes to list. None, or no trigger words, lets everything through; several must all hold."""

    name: str | None = None
    """The exact name."""
    base_checkpoint: str | None = None
    """The base checkpoint's asset id, or what the caller named it by."""
    trigger_words: Sequence[str] = ()
    """All of these."""
    engine: str | None = None
    """The base checkpoint's."""
    offset: int = 0
    """How many to skip."""
    limit: int = 100
    """How many to return at most."""


@dataclass(frozen=True)
class QueueStats:
    """The queue in numbers, for metrics and autoscalers."""

    states: dict[str, int]
    """Tunes by state; of the final ones none are counted, for they only grow."""
    queued: dict[str, int]
    """Queued tunes by engine."""
    oldest_seconds: dict[str, float]
    """Age of the oldest queued tune by engine, seconds."""


async def submit(db: Database, new: NewTune) -> Submitted:
    """Accepts a tune; it is durable when this returns.

    InvalidReference: files or checkpoint are not there, all of them at once. NameTaken, RequestReused, QueueFull as
    they say. The same request_id with the same hash, or without one the same name and hash within ten minutes, gives
    the earlier tune.
    """
    return await db.group("submit", write_submissions).commit(new)


async def check(db: Database, new: NewTune) -> Tune:
    """All that submit() checks, storing nothing: the tune as it would be, without an id; FAILED where it cannot go on
    without a file that is refused already.
    """
    async with db.write() as transaction:
        submitted = await check_submission(transaction, new)
        if not submitted.replayed:
            submitted.tune.id = ""
            foretell(submitted.tune, await look_up(transaction, [id for id, _ in submitted.tune.files]))
    return submitted.tune


async def unfit(db: Database, named: Named) -> list[tuple[str, str]]:
    """Of the assets that a request names, those that submit() would refuse: (proto field path, sentence) of each."""
    async with db.read() as connection:
        return await check_named(connection, named)


async def find(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """The tune. NotFound: none of the tenant's that lives."""
    async with db.read() as connection:
        row = (await connection.execute(_FIND, {"tune": tune_id})).first()
    if row is None or row.tenant_id != tenant_id or row.deleted_at is not None:
        raise NotFound(f"there is no tune {tune_id}")
    return record(Tune, row)


_FIND = select(tunes).where(tunes.c.id == bindparam("tune"))  # by the primary key


async def list_tunes(db: Database, tenant_id: str, which: TuneFilter) -> tuple[list[Tune], int]:
    """A page of the tenant's living tunes that match, newest first, and how many match in all."""
    matching = select(tunes).where(tunes.c.deleted_at.is_(None), tunes.c.tenant_id == tenant_id)
    given: dict[str, Any] = {}
    if which.name is not None:
        matching = matching.where(tunes.c.name == which.name)
    if which.base_checkpoint is not None:
        named = or_(tunes.c.checkpoint_id == which.base_checkpoint, tunes.c.checkpoint_ref == which.base_checkpoint)
        matching = matching.where(named)
    if which.engine is not None:
        matching = matching.where(tunes.c.engine == which.engine)
    if which.trigger_words:
        matching = matching.where(holds_all(tunes.c.trigger_words, "words"))
        given["words"] = which.trigger_words
    page = matching.order_by(tunes.c.created_at.desc(), tunes.c.id.desc()).offset(which.offset).limit(which.limit)
    async with db.read() as connection:
        total = (await connection.execute(select(func.count()).select_from(matching.subquery()), given)).scalar_one()
        rows = (await connection.execute(page, given)).all()
    return [record(Tune, row) for row in rows], total


async def cancel(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """Ends the tune if it is queued; asks its trainer to, if it is leased; a finished one comes back unchanged.

    NotFound: none of the tenant's that lives.
    """
    async with db.write("cancel") as transaction:
        return await _cancel(transaction, await _owned(transaction, tenant_id, tune_id))


async def delete(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """Hides the tune and frees its name; cancels it first where it lives. NotFound: none of the tenant's that lives."""
    async with db.write() as transaction:
        tune = await _cancel(transaction, await _owned(transaction, tenant_id, tune_id))
        return await change(transaction, tune, [], deleted_at=now())


async def _owned(transaction: Transaction, tenant_id: str, tune_id: str) -> Tune:
    tune = await lock(transaction, tune_id)
    if tune is None or tune.tenant_id != tenant_id or tune.deleted_at is not None:
        raise NotFound(f"there is no tune {tune_id}")
    return tune


async def _cancel(transaction: Transaction, tune: Tune) -> Tune:
    if tune.state is TuneState.QUEUED:
        entry = status_changed(TuneState.CANCELLED, "CANCELLED", "", tune.attempts)
        return await move(transaction, tune, TuneState.CANCELLED, [entry], cancel_requested_at=now())
    if tune.state in TERMINAL or tune.cancel_requested_at is not None:
        return tune
    transaction.wake("cancel", tune.id)
    entry = status_changed(tune.state, "CANCEL_REQUESTED", "", tune.attempts)
    return await change(transaction, tune, [entry], cancel_requested_at=now())


async def queue_order(db: Database, tenant_id: str) -> list[str]:
    """Ids of the tenant's whole queue, which its limit bounds, the next one first: a tune's place is its place here."""
    async with db.read() as connection:
        return list((await connection.execute(_ORDER, {"tenant": tenant_id})).scalars())


#: By tunes_queue, which holds what is queued now.
_ORDER = (
    select(tunes.c.id)
    .where(tunes.c.tenant_id == bindparam("tenant"), IS_QUEUED)
    .order_by(tunes.c.priority.desc(), tunes.c.created_at, tunes.c.id)
)


async def queue_stats(db: Database) -> QueueStats:
    """The queue in numbers; reads live tunes only."""
    async with db.read() as connection:
        leased = {row.state: row.tunes for row in await connection.execute(_LEASED_STATS)}
        queued = (await connection.execute(_QUEUED_STATS)).all()
    return QueueStats(
        states={str(TuneState.QUEUED): sum(row.tunes for row in queued)}
        | {str(state): leased.get(state, 0) for state in sorted(LEASED)},
        queued={row.engine: row.tunes for row in queued},
        oldest_seconds={row.engine: (row.now - row.oldest).total_seconds() for row in queued},
    )


#: By the partial index tunes_leases.
_LEASED_STATS = (
    select(tunes.c.state, func.count().label("tunes"))
    .where(tunes.c.lease_expires_at.is_not(None))
    .group_by(tunes.c.state)
)
#: By the partial index tunes_queue.
_QUEUED_STATS = (
    select(
        tunes.c.engine,
        func.count().label("tunes"),
        func.min(tunes.c.created_at, type_=Time()).label("oldest"),
        now().label("now"),
    )
    .where(IS_QUEUED)
    .group_by(tunes.c.engine)
)


def lora_asset_id(tune_id: str) -> str:
    """The id that a tune's LoRA will have: the tune's own suffix. So the gateway can move the object to its final key
    before the transaction, and again after a crash, and a tune has one LoRA by construction.
    """
    return "asset_" + tune_id.removeprefix("tune_")

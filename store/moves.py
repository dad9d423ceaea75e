"""Every move of a tune, with all that belongs to one: the row, its tenant's counters, its events, its webhooks, the
wake-ups, and for the metrics its end. Used by tunes, leases and reports inside their transactions; knows no callers and
no trainers.

Locks are always taken in this order, so that nobody waits in a circle: tune rows, tenant rows, queue rows, webhook
endpoints (shared among moves); the tunes by LOCK_ORDER, the tenants by their ids. Who moves several tunes locks all of
them first, and then moves them in that same order: so it comes to their tenants in order too, as submit() does, which
may have several as well. submit() begins at the tenants' rows and touches only tunes that nobody else knows yet. A
claim begins there too, and skips tune rows that are locked instead of waiting. The queues' rows are touched only under
their tenant's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, null, select, update

from store.database import Transaction
from store.dialect import now
from store.events import Entry, append, status_changed
from store.states import LEASED, TERMINAL, TuneState, may_move
from store.tables import Tune, queues, record, tenants, tunes
from store.webhooks.outbox import tell

#: In which several tunes are locked, and moved.
LOCK_ORDER = (tunes.c.tenant_id, tunes.c.id)
#: A tune ends when so many attempts have ended badly with no newer snapshot between them.
POISON_LIMIT = 3


async def lock(transaction: Transaction, tune_id: str) -> Tune | None:
    """The tune, and its row's lock until the transaction ends."""
    row = (await transaction.execute(_LOCK, {"tune": tune_id})).first()
    return None if row is None else record(Tune, row)


#: By the primary key. NO KEY UPDATE: inserts that refer to the tune need not wait.
_LOCK = select(tunes).where(tunes.c.id == bindparam("tune")).with_for_update(key_share=True)


async def move(
    transaction: Transaction,
    tune: Tune,
    to: TuneState,
    entries: Sequence[Entry],
    **values: Any,  # noqa: ANN401  # columns
) -> Tune:
    """Moves a locked tune, and returns it as it then stands. `values`: further columns."""
    assert may_move(tune.state, to), f"{tune.id} may not go from {tune.state} to {to}"
    if to not in LEASED:
        values |= {"lease_expires_at": None, "phase": None}
    if to in TERMINAL:
        values["ended_at"] = now()
    moved = await change(transaction, tune, entries, state=to, **values)
    await _count(transaction, tune, to)
    await tell(transaction, moved)
    if to in TERMINAL:
        transaction.tell_end(to, tune.engine)
    if to is TuneState.QUEUED or (tune.state in LEASED and to not in LEASED):
        transaction.wake("queue", tune.engine)  # it may be claimed, or its tenant may run another
    return moved


async def change(
    transaction: Transaction,
    tune: Tune,
    entries: Sequence[Entry],
    **values: Any,  # noqa: ANN401  # columns
) -> Tune:
    """Changes columns of a locked tune and writes its entries; the state stays, unless move() has it among the
    values.
    """
    values = {"updated_at": now(), **values, "event_seq": tunes.c.event_seq + len(entries)}
    values = {name: null() if value is None else value for name, value in values.items()}
    changed = update(tunes).where(tunes.c.id == tune.id).values(**values).returning(*tunes.c)
    after = record(Tune, (await transaction.execute(changed)).one())
    await append(transaction, after, entries)
    return after


async def _count(transaction: Transaction, tune: Tune, to: TuneState) -> None:
    queued = (to is TuneState.QUEUED) - (tune.state is TuneState.QUEUED)
    running = (to in LEASED) - (tune.state in LEASED)
    if queued or running:
        counts = {"tenant": tune.tenant_id, "by_queued": queued, "by_running": running}
        claimed = tune.state is TuneState.QUEUED and to is TuneState.ASSIGNED
        await transaction.execute(_COUNT_CLAIMED if claimed else _COUNT_TENANT, counts)
    if queued:
        which = {"tenant": tune.tenant_id, "for_engine": tune.engine, "for_class": tune.memory_class}
        await transaction.execute(_COUNT_QUEUE, {**which, "by_queued": queued})


_COUNT_TENANT = (
    update(tenants)
    .where(tenants.c.id == bindparam("tenant"))
    .values(queued=tenants.c.queued + bindparam("by_queued"), running=tenants.c.running + bindparam("by_running"))
)
_COUNT_CLAIMED = _COUNT_TENANT.values(served_at=now())
_COUNT_QUEUE = (
    update(queues)
    .where(
        queues.c.tenant_id == bindparam("tenant"),
        queues.c.engine == bindparam("for_engine"),
        queues.c.memory_class == bindparam("for_class"),
    )
    .values(queued=queues.c.queued + bindparam("by_queued"))
)


async def end_attempt(
    transaction: Transaction,
    tune: Tune,
    reason: str,
    details: str = "",
    *,
    counts: bool,
    retryable: bool = True,
    limit: int = POISON_LIMIT,
    **values: Any,  # noqa: ANN401  # columns
) -> Tune:
    """An attempt at a locked tune ended without a LoRA: back to the queue, unless the tune was cancelled, cannot be
    mended by another attempt, or has ended too many. `counts`: whether this one counts towards that limit.
    """
    crashes = tune.crashes + counts
    values["crashes"] = crashes
    if tune.cancel_requested_at is not None:
        entry = status_changed(TuneState.CANCELLED, "CANCELLED", "", tune.attempts)
        return await move(transaction, tune, TuneState.CANCELLED, [entry], **values)
    if counts and retryable and crashes >= limit:
        details = f"{details} {crashes} attempts ended badly with no newer snapshot between them.".lstrip()
        retryable = False
    if not retryable:
        entry = status_changed(TuneState.FAILED, reason, details, tune.attempts)
        return await move(transaction, tune, TuneState.FAILED, [entry], status_details=details, **values)
    entry = status_changed(TuneState.QUEUED, reason, details, tune.attempts)
    return await move(transaction, tune, TuneState.QUEUED, [entry], **values)


async def end_lost(transaction: Transaction, tune: Tune, *, blamed: bool = True) -> Tune:
    """The lease of a locked tune is over without a report: its trainer died, or no longer knows of it. `blamed`:
    whether the tune may have killed it, where it was running.
    """
    counts = blamed and tune.state is TuneState.RUNNING
    return await end_attempt(transaction, tune, "LEASE_ENDED", LOST, counts=counts)


LOST = "The trainer was lost."

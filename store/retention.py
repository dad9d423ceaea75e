"""What is let go of with age: most step metrics of ended tunes, the bytes of assets that were deleted long ago, the
rows of keys that have opened nothing for long, and of webhooks that were delivered long ago. Called by
gateway/retention, in each gateway at the same time; knows no bytes.

Each transaction is a short one over a bounded number of rows, and passes over what another gateway has locked. All of
it may be done twice, or half: the next round goes on.

Nothing else ages. Rows of tunes, assets and events stay, for whoever asks by id, by request_id, or for the events after
one that it has seen: their numbers have no gaps, also where a chunk of metrics has lost most of its steps. So do LoRAs
and pictures until they are deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Float, bindparam, delete, exists, or_, select, update

from store.database import Database, Transaction
from store.dialect import Document, among, later, now
from store.moves import lock
from store.tables import IS_QUEUED, api_keys, assets, events, tunes
from store.webhooks.tables import webhook_deliveries, webhook_endpoints

CHUNKS = 500  # of metrics, a transaction
ROWS = 200  # a transaction
EVERY = 10  # steps of which one is kept


async def thin_metrics(db: Database, after_seconds: float) -> int:
    """Thins the step metrics of the tune that ended first, of those that ended so long ago. How many tunes: 1 or 0."""
    async with db.write() as transaction:
        due = (await transaction.execute(_UNTHINNED, {"ago": -after_seconds})).first()
        if due is None:
            return 0
        reached = await _thin(transaction, due.id, 0)
    while reached is not None:
        async with db.write() as transaction:
            await lock(transaction, due.id)  # before its events, as above: two gateways may be at one tune
            reached = await _thin(transaction, due.id, reached)
    return 1


#: By the partial index of that name.
_UNTHINNED = (
    select(tunes.c.id)
    .where(tunes.c.thinned_at.is_(None), tunes.c.ended_at <= later(bindparam("ago", type_=Float())))
    .order_by(tunes.c.ended_at)
    .limit(1)
    .with_for_update(key_share=True, skip_locked=True)
)


async def _thin(transaction: Transaction, tune_id: str, after_seq: int) -> int | None:
    """Thins some chunks; the last one's seq, or None where there are no more."""
    chunks = (await transaction.execute(_CHUNKS, {"tune": tune_id, "after": after_seq})).all()
    thinned = [(chunk.seq, chunk.body["steps"], thin(chunk.body["steps"])) for chunk in chunks]
    changed = [{"tune": tune_id, "at": seq, "left": {"steps": few}} for seq, steps, few in thinned if few != steps]
    if changed:
        await transaction.execute(_SHRINK, changed)
    if len(chunks) == CHUNKS:
        return int(chunks[-1].seq)
    await transaction.execute(_MARK, {"tune": tune_id})
    return None


#: By the primary key.
_CHUNKS = (
    select(events.c.seq, events.c.body)
    .where(events.c.tune_id == bindparam("tune"), events.c.seq > bindparam("after"), events.c.kind == "metrics")
    .order_by(events.c.seq)
    .limit(CHUNKS)
)
_SHRINK = (
    update(events)
    .where(events.c.tune_id == bindparam("tune"), events.c.seq == bindparam("at"))
    .values(body=bindparam("left", type_=Document()))
)
_MARK = update(tunes).where(tunes.c.id == bindparam("tune")).values(thinned_at=now())


def thin(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a chunk, every tenth step and the last one; the same again where it is thin already."""
    return [step for step in steps if step["step"] % EVERY == 0 or step is steps[-1]]


async def release_assets(db: Database, after_seconds: float) -> int:
    """Gives up the bytes of some assets that were deleted so long ago: they belong to nobody then, and the sweeper
    deletes them. How many.

    Not those that a tune may still read, which it does also when they have been deleted: any that was accepted before
    the deletion and has not ended. `after_seconds` is longer by far than a tune takes from its acceptance to its row.
    """
    async with db.write() as transaction:
        ids = (await transaction.execute(_UNRELEASED, {"ago": -after_seconds})).scalars().all()
        if ids:
            await transaction.execute(_RELEASE, {"ids": ids})
    return len(ids)


#: Both by their partial indexes, tunes_queue and tunes_leases.
_MAY_READ = exists().where(
    or_(IS_QUEUED, tunes.c.lease_expires_at.is_not(None)),
    or_(tunes.c.tenant_id == assets.c.tenant_id, assets.c.is_public),
    tunes.c.created_at <= assets.c.deleted_at,
)
#: By the partial index of that name.
_UNRELEASED = (
    select(assets.c.id)
    .where(assets.c.object_key.is_not(None), assets.c.deleted_at <= later(bindparam("ago", type_=Float())), ~_MAY_READ)
    .order_by(assets.c.deleted_at)
    .limit(ROWS)
    .with_for_update(key_share=True, skip_locked=True)
)
_RELEASE = update(assets).where(among(assets.c.id, "ids")).values(object_key=None)


async def forget_keys(db: Database, after_seconds: float) -> int:
    """Erases some API keys that expired or were revoked so long ago. How many."""
    async with db.write() as transaction:
        return (await transaction.execute(_FORGET, {"ago": -after_seconds})).rowcount


#: Reads all keys: there are as many as callers.
_FORGET = delete(api_keys).where(
    api_keys.c.id.in_(
        select(api_keys.c.id)
        .where(
            or_(
                api_keys.c.expires_at <= later(bindparam("ago", type_=Float())),
                api_keys.c.revoked_at <= later(bindparam("ago", type_=Float())),
            )
        )
        .limit(ROWS)
        .with_for_update(skip_locked=True)
    )
)


async def forget_deliveries(db: Database, after_seconds: float) -> int:
    """Erases some webhooks, with their tries, that were delivered or given up so long ago, or have waited for so long
    at an endpoint that was disabled as long ago. How many.
    """
    async with db.write() as transaction:
        count = 0
        for which in (_ENDED_DELIVERIES, _STRANDED_DELIVERIES):
            rows = (await transaction.execute(which, {"ago": -after_seconds})).all()
            if rows:
                keys = [{"message": row.message_id, "endpoint": row.endpoint_id} for row in rows]
                await transaction.execute(_FORGET_DELIVERY, keys)
            count += len(rows)
    return count


#: By the partial index of that name.
_ENDED_DELIVERIES = (
    select(webhook_deliveries.c.message_id, webhook_deliveries.c.endpoint_id)
    .where(webhook_deliveries.c.ended_at <= later(bindparam("ago", type_=Float())))
    .order_by(webhook_deliveries.c.ended_at)
    .limit(ROWS)
    .with_for_update(skip_locked=True)
)
#: By webhook_deliveries_due; disabled endpoints are few. What was sent again by hand is due since then, and stays: who
#: did so means to enable the endpoint.
_STRANDED_DELIVERIES = (
    select(webhook_deliveries.c.message_id, webhook_deliveries.c.endpoint_id)
    .join(webhook_endpoints, webhook_endpoints.c.id == webhook_deliveries.c.endpoint_id)
    .where(
        webhook_deliveries.c.due_at <= later(bindparam("ago", type_=Float())),
        webhook_endpoints.c.disabled_at <= later(bindparam("ago", type_=Float())),
    )
    .limit(ROWS)
    .with_for_update(skip_locked=True, of=webhook_deliveries)
)
#: Its tries go with it.
_FORGET_DELIVERY = delete(webhook_deliveries).where(
    webhook_deliveries.c.message_id == bindparam("message"), webhook_deliveries.c.endpoint_id == bindparam("endpoint")
)

"""Reads a run's history out of its database and its folder of objects. Called at a run's end; judges nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import select

from store.database import Database
from store.objects import Objects
from store.tables import assets, events, tenants, tunes
from store.webhooks.tables import webhook_deliveries
from tests.chaos.history import Content, Entry, History, Lora, Tenant, Tune


async def read(database: Database, objects: Objects, **said: Any) -> History:
    """The history. `said`: what callers were told, and the twins."""
    logs: dict[str, list[Entry]] = defaultdict(list)
    webhooks: dict[str, list[str]] = defaultdict(list)
    async with database.read() as connection:
        for row in await connection.execute(select(events).order_by(events.c.tune_id, events.c.seq)):
            logs[row.tune_id].append(Entry(row.seq, row.epoch, row.kind, row.body))
        for row in await connection.execute(select(webhook_deliveries).order_by(webhook_deliveries.c.created_at)):
            webhooks[row.tune_id].append(row.event_type)
        tune_rows = (await connection.execute(select(tunes).order_by(tunes.c.created_at))).all()
        lora_rows = (await connection.execute(select(assets).where(assets.c.tune_id.is_not(None)))).all()
        tenant_rows = (await connection.execute(select(tenants))).all()
    return History(
        tunes=[_tune(row, logs[row.id], webhooks[row.id]) for row in tune_rows],
        loras=[Lora(row.id, row.tune_id, row.status, row.object_key, row.sha256, row.size_bytes) for row in lora_rows],
        objects={key: Content(*await objects.hash(key)) async for key, _ in objects.list()},
        tenants=[Tenant(row.id, row.queued, row.running) for row in tenant_rows],
        **said,
    )


def _tune(row: Any, log: list[Entry], webhooks: list[str]) -> Tune:
    return Tune(
        id=row.id,
        name=row.name,
        state=str(row.state),
        lease_epoch=row.lease_epoch,
        event_seq=row.event_seq,
        log=log,
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        output_lora_ids=row.output_lora_ids,
        snapshot_keys=[key for key in (row.snapshot_key, (row.earlier_snapshot or {}).get("object_key")) if key],
        webhooks=webhooks,
    )

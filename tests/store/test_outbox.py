"""A tune's webhooks are written with its moves: for who wants them, once, and never without the move."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from store import keys, leases, reports, tunes
from store.reports import LoraResult
from store.webhooks import endpoints
from store.webhooks.tables import EVENT_TYPES, webhook_deliveries
from tests.store.world import LEASE, World

LORA = LoraResult("loras/x", "c" * 64, 9, step=10, final_loss=0.1, pictures=1)


async def told(world: World) -> list[tuple[str, str, dict[str, Any]]]:
    """Endpoint, event type and body of each message, in the order of their writing."""
    rows = select(webhook_deliveries).order_by(webhook_deliveries.c.message_id, webhook_deliveries.c.endpoint_id)
    async with world.database.read() as connection:
        return [(row.endpoint_id, row.event_type, json.loads(row.body)) for row in await connection.execute(rows)]


async def add(world: World, *event_types: str, tenant: str = "acme") -> str:
    endpoint, _ = await endpoints.add(
        world.database, tenant, "https://receiver.example/hook", event_types or EVENT_TYPES
    )
    return endpoint.id


async def test_nothing_is_written_for_a_tenant_without_endpoints(world: World) -> None:
    await keys.create_tenant(world.database, "other")
    await add(world, tenant="other")
    claim = await world.running()

    await reports.finish(world.database, claim.lease, 1, LORA)

    assert await told(world) == []


async def test_message_says_what_happened_to_which_tune_and_no_more(world: World) -> None:
    await add(world, "tune.succeeded")
    claim = await world.running(name='cat "é" \\ 猫', metadata={"secret": "of the caller's"})

    await reports.finish(world.database, claim.lease, 1, LORA)

    [(_, event_type, body)] = await told(world)
    tune = await world.tune(claim.tune.id)
    assert event_type == "tune.succeeded"
    assert body == {
        "type": "tune.succeeded",
        "timestamp": body["timestamp"],
        "data": {
            "id": tune.id,
            "tenant_id": world.tenant.id,
            "name": 'cat "é" \\ 猫',
            "status": "succeeded",
            "output_lora_ids": tune.output_lora_ids,
        },
    }
    assert body["timestamp"].endswith("Z")
    assert datetime.fromisoformat(body["timestamp"]) == tune.updated_at


async def test_each_endpoint_is_told_of_the_types_that_it_asked_for(world: World) -> None:
    every, ends, cancels = (
        await add(world),
        await add(world, "tune.succeeded", "tune.failed"),
        await add(world, "tune.cancelled"),
    )
    claim = await world.running()
    await reports.finish(world.database, claim.lease, 1, LORA)
    queued = await world.queued()
    await tunes.cancel(world.database, world.tenant.id, queued.id)

    messages = await told(world)

    assert sorted((endpoint, event_type) for endpoint, event_type, _ in messages) == sorted(
        [
            (every, "tune.running"),
            (every, "tune.succeeded"),
            (every, "tune.cancelled"),
            (ends, "tune.succeeded"),
            (cancels, "tune.cancelled"),
        ]
    )


async def test_endpoints_of_one_tenant_get_one_message_under_one_id(world: World) -> None:
    await add(world, "tune.cancelled")
    await add(world, "tune.cancelled")
    queued = await world.queued()

    await tunes.cancel(world.database, world.tenant.id, queued.id)

    async with world.database.read() as connection:
        ids = (await connection.execute(select(webhook_deliveries.c.message_id))).scalars().all()
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert ids[0].startswith("msg_")


async def test_tune_that_goes_back_to_the_queue_is_told_when_it_runs_again_and_when_it_ends(world: World) -> None:
    await add(world)
    await world.queued()
    for _ in range(3):
        claim = await world.claim()
        assert claim is not None
        await leases.accept(world.database, claim.lease)
        await reports.fail(world.database, claim.lease, 1, "CUDA", "It broke.", retryable=True, crashed=True)

    types = [event_type for _, event_type, _ in await told(world)]

    assert types == ["tune.running"] * 3 + ["tune.failed"]


async def test_report_that_comes_twice_is_told_once(world: World) -> None:
    await add(world, "tune.succeeded")
    claim = await world.running()

    await asyncio.gather(*(reports.finish(world.database, claim.lease, 1, LORA) for _ in range(3)))

    assert len(await told(world)) == 1


async def test_end_by_the_reaper_and_by_a_claim_is_told_too(world: World) -> None:
    await add(world, "tune.failed", "tune.cancelled")
    claim = await world.running()
    await tunes.cancel(world.database, world.tenant.id, claim.tune.id)
    await world.pass_time(LEASE + 5)
    await tunes.submit(world.database, world.new_tune([await world.file(ready=False)]))

    assert await world.claim() is None

    assert [event_type for _, event_type, _ in await told(world)] == ["tune.cancelled", "tune.failed"]


async def test_move_that_is_rolled_back_leaves_no_message(world: World) -> None:
    await add(world)
    tune = await world.queued()

    async def broken() -> None:
        async with world.database.write() as transaction:
            await tunes._cancel(transaction, tune)
            raise LookupError("something breaks before the commit")

    with pytest.raises(LookupError):
        await broken()

    assert await told(world) == []


async def test_message_wakes_who_delivers_after_the_commit_and_only_where_there_is_one(world: World) -> None:
    silent, loud = await world.queued(), await world.queued()

    async with world.database.wakeups.subscribe("webhook") as woken:
        await tunes.cancel(world.database, world.tenant.id, silent.id)
        before = await woken.wait(0)
        await add(world)
        await tunes.cancel(world.database, world.tenant.id, loud.id)
        after = await woken.wait(10.0)

    assert (before, after) == ([], [world.tenant.id])


async def test_disabled_endpoint_is_told_nothing_until_it_is_enabled(world: World) -> None:
    endpoint = await add(world)
    first, second = await world.queued(), await world.queued()

    await endpoints.disable(world.database, endpoint, "too loud")
    await tunes.cancel(world.database, world.tenant.id, first.id)
    await endpoints.enable(world.database, endpoint)
    await tunes.cancel(world.database, world.tenant.id, second.id)

    assert [body["data"]["id"] for _, _, body in await told(world)] == [second.id]


async def test_no_move_fails_while_its_endpoint_is_removed(world: World, database_url: str) -> None:
    """The tenant's endpoints come and go at another gateway while its tunes end."""
    other = await world.other_gateway(database_url)
    queued = [await world.queued() for _ in range(6)]
    added = [await add(world, "tune.cancelled") for _ in range(6)]

    async def remove() -> None:
        for endpoint in added:
            await endpoints.remove(other.database, endpoint)

    async def cancel() -> None:
        for tune in queued:
            await tunes.cancel(world.database, world.tenant.id, tune.id)

    await asyncio.gather(remove(), cancel())

    await other.database.close()
    assert {(await world.tune(tune.id)).state for tune in queued} == {"cancelled"}
    async with world.database.read() as connection:
        left = (await connection.execute(select(func.count()).select_from(webhook_deliveries))).scalar_one()
    assert left == 0, "an endpoint's messages go with it"

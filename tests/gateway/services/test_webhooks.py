"""Webhooks of whole gateway processes: they begin by themselves, and outlive a death between sending and recording."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.responses import Response

from gateway.webhooks.delivery import LEASE
from store import tunes
from store.database import Database
from store.webhooks import endpoints, messages
from tests.servers.gateway import Gateway
from tests.servers.receiver import Received, receiving
from tests.store.world import make_world


async def test_webhook_that_a_killed_gateway_had_sent_is_sent_again_under_its_id(
    postgres_url: str, tmp_path: Path
) -> None:
    database = await Database.open(postgres_url)
    world = await make_world(database)
    gateway = Gateway(postgres_url, tmp_path, {"TUNESMITH_OUTBOUND_ALLOW": "127.0.0.0/8,::1/128"})
    await asyncio.to_thread(gateway.start)
    dead = asyncio.Event()

    async def answer(_: Received) -> Response:
        await dead.wait()
        return Response(status_code=204)

    async with receiving() as receiver:
        receiver.answer = answer
        await endpoints.add(database, "acme", receiver.url)
        await tunes.cancel(database, world.tenant.id, (await world.queued()).id)
        await receiver.have(1)

        gateway.kill()
        dead.set()
        await database.move_clock(LEASE + 1)
        await asyncio.to_thread(gateway.start)
        [first, second] = await receiver.have(2)
        await asyncio.to_thread(gateway.stop)

    [entry] = await messages.log(database)
    await database.close()
    assert (first.id, first.body) == (second.id, second.body)
    assert entry.delivery.state == "delivered", "what a gateway has sent when it is told to end, it records"
    assert [(each.epoch, each.status) for each in entry.attempts] == [(2, 204)]

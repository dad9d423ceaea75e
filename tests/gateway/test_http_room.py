"""The memory that uploads share: who is let in, who waits, and who is told to come again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from gateway.http.room import Room
from gateway.status import Refusal


async def holding(stack: AsyncExitStack, room: Room, owner: str, size: int) -> None:
    await stack.enter_async_context(room.held(owner, size))


async def entered(room: Room, owner: str, size: int) -> None:
    async with room.held(owner, size):
        pass


async def test_what_leaves_makes_room_for_who_waits_first_and_for_no_more() -> None:
    room = Room(100, wait_seconds=60)
    order: list[str] = []

    async def one(name: str) -> None:
        async with room.held("third", 50):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await holding(first, room, "acme", 50)
        await holding(second, room, "other", 50)
        waiting = [asyncio.create_task(one(name)) for name in ("earlier", "later")]
        await asyncio.sleep(0)
        assert order == []

        await first.aclose()
        await asyncio.gather(*waiting)

    assert order == ["earlier in", "earlier out", "later in", "later out"]


async def test_a_tenant_gets_half_and_leaves_the_other_half_to_others() -> None:
    room = Room(100, wait_seconds=0)

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 30)
        await holding(stack, room, "acme", 20)
        with pytest.raises(Refusal, match="Your tenant's uploads have their half"):
            await entered(room, "acme", 1)
        await holding(stack, room, "other", 50)
        with pytest.raises(Refusal, match="Uploads have all"):
            await entered(room, "third", 1)

    await entered(room, "acme", 50)


async def test_who_finds_no_room_in_time_is_told_when_to_come_again_and_holds_nothing() -> None:
    told: list[str] = []
    room = Room(100, wait_seconds=0, refused=lambda: told.append("refused"))

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 50)
        with pytest.raises(Refusal) as raised:
            await entered(room, "acme", 50)
    await entered(room, "acme", 50)

    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAVAILABLE, "UPLOADS_BUSY")
    assert (raised.value.http_status, raised.value.retry_after_seconds) == (503, 5.0)
    assert told == ["refused"]


async def test_a_small_one_passes_by_a_large_one_that_does_not_fit() -> None:
    room = Room(100, wait_seconds=60)

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 40)
        large = asyncio.create_task(entered(room, "acme", 20))
        await asyncio.sleep(0)
        await entered(room, "acme", 10)
        assert not large.done()
    await large


@pytest.mark.parametrize("let_in_first", [True, False])
async def test_who_is_cancelled_while_it_waits_holds_nothing(let_in_first: bool) -> None:
    """Also where it was let in at that moment and has not gone on yet."""
    room = Room(100, wait_seconds=60)

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 50)
        waiting = asyncio.create_task(entered(room, "acme", 50))
        await asyncio.sleep(0)
        if let_in_first:
            await stack.aclose()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()

    async with asyncio.timeout(0):
        await entered(room, "acme", 50)

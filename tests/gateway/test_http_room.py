"""The memory that uploads share: who is let in, who waits, and who is told to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from gateway.http.room import WAITING, Room
from gateway.status import Refusal


async def holding(stack: AsyncExitStack, room: Room, owner: str, size: int) -> None:
    await stack.enter_async_context(room.held(owner, size))


async def entered(room: Room, owner: str, size: int, most: int | None = None) -> None:
    async with room.held(owner, size, most):
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


async def test_what_may_grow_begins_with_little_and_takes_the_rest_when_it_asks_for_it() -> None:
    room = Room(100, wait_seconds=0)

    async with AsyncExitStack() as stack:
        grow = await stack.enter_async_context(room.held("acme", 10, 40))
        await entered(room, "acme", 40)
        await grow()
        with pytest.raises(Refusal, match="Your tenant's uploads have their half"):
            await entered(room, "acme", 11)
        await entered(room, "acme", 10)
    await entered(room, "acme", 50)


@pytest.mark.parametrize(("owners", "begun"), [(["acme"], 5), (["acme", "other", "third", "fourth"], 15)])
async def test_what_may_grow_begins_only_where_the_last_to_begin_can_go_on(owners: list[str], begun: int) -> None:
    """Of one tenant, and of several: there would be room for some more that began."""
    room = Room(200, wait_seconds=0)

    async with AsyncExitStack() as stack:
        for number in range(begun):
            grow = await stack.enter_async_context(room.held(owners[number % len(owners)], 10, 60))
        with pytest.raises(Refusal):
            await entered(room, owners[-1], 10, 60)
        await grow()


async def test_each_that_wants_more_gets_it_when_those_before_it_have_ended() -> None:
    room = Room(200, wait_seconds=60)
    ended: list[int] = []

    async def one(number: int) -> None:
        async with room.held("acme", 10, 60) as grow:
            await together.wait()
            await grow()
            ended.append(number)

    together = asyncio.Barrier(5)
    await asyncio.gather(*map(one, range(5)))

    assert sorted(ended) == [0, 1, 2, 3, 4]
    async with asyncio.timeout(0):
        await entered(room, "acme", 100)


async def test_who_wants_more_goes_before_who_has_nothing_yet() -> None:
    room = Room(200, wait_seconds=60)
    order: list[str] = []

    async def newcomer() -> None:
        await entered(room, "acme", 50)
        order.append("newcomer")

    async def grown(grow: Callable[[], Awaitable[None]]) -> None:
        await grow()
        order.append("grown")

    async with AsyncExitStack() as first:
        async with room.held("acme", 20, 60) as grow:
            await holding(first, room, "acme", 80)
            waiting = [asyncio.create_task(newcomer())]
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(grown(grow)))
            await asyncio.sleep(0)
            await first.aclose()
            await waiting[1]
            assert order == ["grown"]
        await waiting[0]


async def test_what_has_grown_needs_no_room_kept_for_it() -> None:
    """One that waited for fear of both wanting more begins when the other has all that it wants."""
    room = Room(200, wait_seconds=60)

    async with room.held("acme", 10, 20) as grow:
        waiting = asyncio.create_task(entered(room, "acme", 10, 95))
        await asyncio.sleep(0)
        assert not waiting.done()
        await grow()
        await waiting


async def test_one_that_is_refused_more_holds_nothing_once_it_has_ended() -> None:
    room = Room(100, wait_seconds=0)

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 30)
        with pytest.raises(Refusal, match="Your tenant's uploads have their half"):
            async with room.held("acme", 10, 40) as grow:
                await grow()
        await entered(room, "acme", 20)


async def test_a_tenant_with_many_that_wait_is_refused_at_once_and_no_other_is() -> None:
    told: list[str] = []
    room = Room(100, wait_seconds=60, refused=lambda: told.append("refused"))

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 50)
        await holding(stack, room, "other", 50)
        waiting = [asyncio.create_task(entered(room, "acme", 50)) for _ in range(WAITING)]
        await asyncio.sleep(0)
        async with asyncio.timeout(0):
            with pytest.raises(Refusal, match="64 of your tenant's uploads wait for memory already") as raised:
                await entered(room, "acme", 1)
        others = asyncio.create_task(entered(room, "other", 50))
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        waiting[0] = asyncio.create_task(entered(room, "acme", 50))
        await asyncio.sleep(0)
    await asyncio.gather(others, *waiting)

    assert (raised.value.http_status, raised.value.retry_after_seconds) == (503, 5.0)
    assert told == ["refused"]


async def test_who_comes_costs_the_same_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, fits = 0, Room._fits

    def counting(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return fits(*args)

    monkeypatch.setattr(Room, "_fits", counting)
    room = Room(100, wait_seconds=60)

    async with AsyncExitStack() as stack:
        await holding(stack, room, "acme", 50)
        waiting = [asyncio.create_task(entered(room, "acme", 50)) for _ in range(WAITING)]
        await asyncio.sleep(0)
        assert looks == 1 + WAITING
    await asyncio.gather(*waiting)

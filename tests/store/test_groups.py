"""Group commit: together, in order, and each with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from store.errors import DatabaseAway
from store.groups import GroupCommit


class Recorder:
    """A fake of the database: transactions are lists, and wait until they may commit."""

    def __init__(self) -> None:
        self.committed: list[list[int]] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[list[int]]:
        transaction: list[int] = []
        yield transaction
        await self.may_commit.wait()
        self.committed.append(transaction)

    async def double(self, transaction: list[int], items: Sequence[int]) -> Sequence[int | Exception]:
        if 13 in items:
            raise ValueError("13 cannot be stored")
        if 99 in items:
            raise DatabaseAway("gone")
        transaction += items
        return [ValueError("odd") if item % 2 else 2 * item for item in items]


async def test_those_who_come_meanwhile_go_together() -> None:
    recorder = Recorder()
    group: GroupCommit[int, int, list[int]] = GroupCommit(recorder.begin, recorder.double)
    recorder.may_commit.clear()
    first = asyncio.create_task(group.commit(2))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(group.commit(item)) for item in (4, 6, 8)]
    await asyncio.sleep(0.01)
    recorder.may_commit.set()

    assert await asyncio.gather(first, *others) == [4, 8, 12, 16]
    assert recorder.committed == [[2], [4, 6, 8]]


async def test_each_has_its_own_answer() -> None:
    recorder = Recorder()
    group: GroupCommit[int, int, list[int]] = GroupCommit(recorder.begin, recorder.double)

    answers = await asyncio.gather(*(group.commit(item) for item in (2, 3, 13, 4)), return_exceptions=True)

    assert [str(answer) for answer in answers] == ["4", "odd", "13 cannot be stored", "8"]


async def test_an_outage_is_told_to_all_and_not_tried_again() -> None:
    recorder = Recorder()
    group: GroupCommit[int, int, list[int]] = GroupCommit(recorder.begin, recorder.double)

    answers = await asyncio.gather(*(group.commit(item) for item in (2, 99)), return_exceptions=True)

    assert all(isinstance(answer, DatabaseAway) for answer in answers)
    assert recorder.committed == []
    assert await group.commit(2) == 4


async def test_who_has_gone_is_not_written() -> None:
    recorder = Recorder()
    group: GroupCommit[int, int, list[int]] = GroupCommit(recorder.begin, recorder.double)
    recorder.may_commit.clear()
    first = asyncio.create_task(group.commit(2))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(group.commit(4))
    await asyncio.sleep(0.01)
    gone.cancel()
    recorder.may_commit.set()

    assert await first == 4
    with pytest.raises(asyncio.CancelledError):
        await gone
    await group.close()
    assert recorder.committed == [[2]]

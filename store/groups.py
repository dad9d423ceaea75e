"""Group commit: callers that come while a transaction is under way go together into the next one. Used by submission,
where each alone would cost a transaction with its fsync; knows no tables.

    caller 1 --> transaction {1}
    callers 2 3 4, meanwhile ----> transaction {2, 3, 4}     one fsync, and one statement of each kind
    callers 5 6, meanwhile ----------------------------> ...

Nobody waits for company: an idle group takes a caller at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from store.errors import DatabaseAway

Item = TypeVar("Item")
Result = TypeVar("Result")
Transaction = TypeVar("Transaction")

TOGETHER = 64  # items in one transaction at most: bounds how long a lock is held


class GroupCommit(Generic[Item, Result, Transaction]):
    """The items of one kind of write. All on one event loop."""

    def __init__(
        self,
        begin: Callable[[], AbstractAsyncContextManager[Transaction]],
        work: Callable[[Transaction, Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
    ) -> None:
        """`work` writes all items and returns, in their order, each one's result or why it has none."""
        self._begin = begin
        self._work = work
        #: Written by commit(), taken from by the one task below.
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def commit(self, item: Item) -> Result:
        """Writes the item; it is durable when this returns. Raises what `work` has for it."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="group commit")
        return await answer

    async def close(self) -> None:
        """Waits until nobody waits."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            group = [(item, answer) for item, answer in taken if not answer.done()]  # done: its caller has gone
            if group:
                await self._write(group)

    async def _write(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | Exception]
        try:
            async with self._begin() as transaction:
                results = await self._work(transaction, [item for item, _ in group])
        except Exception as error:  # all of it reaches the callers
            if len(group) > 1 and not isinstance(error, DatabaseAway):
                for alone in group:  # one item that cannot be stored must not fail its neighbours
                    await self._write([alone])
                return
            results = [error] * len(group)
        for (_, answer), result in zip(group, results, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

"""The seam of wake-ups, and the delivery within this process that every implementation shares. Published to by the
database after a commit; subscribed to by gateway/dispatch, watch and session. Knows no SQL.

A wake-up carries an id and no truth: the receiver looks into the database. It may be lost (the receiver polls
beneath, every 2 s), may come twice, and ids that come faster than they are taken are told once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

#: "queue": an engine has something claimable. "tune": a tune changed or has a new event. "cancel": a leased tune is
#: to be cancelled. "trainer": another stream has taken over a trainer's row, or the operator wants it empty or at work.
#: "webhook": a tune's tenant has something to be told.
Topic = Literal["queue", "tune", "cancel", "trainer", "webhook"]

#: Ids that a subscription holds at most; the oldest are dropped, as if lost.
BACKLOG = 10_000


class Wakeups(ABC):
    """Publishes ids and hands them to subscribers."""

    def __init__(self) -> None:
        #: Written by subscribe() and Subscription.close(), read by deliver(); all on the event loop.
        self._subscriptions: dict[Topic, set[Subscription]] = {}

    def subscribe(self, topic: Topic) -> Subscription:
        """From now on the topic's ids, until the subscription is closed: `async with` or close()."""
        subscription = Subscription(self, topic)
        self._subscriptions.setdefault(topic, set()).add(subscription)
        return subscription

    def deliver(self, topic: Topic, ids: Iterable[str]) -> None:
        """Hands ids to this process's subscribers."""
        subscriptions = self._subscriptions.get(topic)
        if subscriptions:
            ids = list(ids)
            for subscription in subscriptions:
                subscription.add(ids)

    def forget(self, subscription: Subscription) -> None:
        """Hands it nothing more."""
        self._subscriptions.get(subscription.topic, set()).discard(subscription)

    @abstractmethod
    def publish(self, topic: Topic, id: str) -> None:
        """Tells the id to all subscribers, here and elsewhere, soon. Never blocks and never fails. After the commit
        only.
        """

    @abstractmethod
    async def start(self) -> None:
        """Begins to listen."""

    @abstractmethod
    async def close(self) -> None:
        """Ends all subscriptions' sources; what is not yet told is lost."""


class Subscription:
    """An async iterator of ids; or, for those who poll beneath, wait()."""

    def __init__(self, source: Wakeups, topic: Topic) -> None:
        self.topic = topic
        self._source = source
        self._ids: dict[str, None] = {}  # ordered, each once
        self._woken = asyncio.Event()

    def add(self, ids: Iterable[str]) -> None:
        """Called by the source."""
        self._ids.update(dict.fromkeys(ids))
        while len(self._ids) > BACKLOG:
            del self._ids[next(iter(self._ids))]
        self._woken.set()

    async def wait(self, timeout_seconds: float | None = None) -> list[str]:
        """All ids since the last call, each once; empty when the time is up."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        ids = list(self._ids)
        self._ids.clear()
        self._woken.clear()
        return ids

    def close(self) -> None:
        """No more ids."""
        self._source.forget(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        await self._woken.wait()
        id = next(iter(self._ids))
        del self._ids[id]
        if not self._ids:
            self._woken.clear()
        return id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

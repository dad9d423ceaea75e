"""Where a pending tune stands: its place in its tenant's queue, and why it is still pending. Called by the tune
servicer for every pending tune that it tells of; knows no message.

A place can only be had by counting a queue that may hold ten thousand tunes, and callers ask again and again. So a
count is remembered for twenty times as long as it took: a short queue is told exactly, and a long one costs a twentieth
of the time at most. Best effort, as the contract says: a place is old by the time that it is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from store import tenants, trainers, tunes
from store.database import Database
from store.states import TuneState
from store.tables import Tune

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

SHARE = 20  # an answer lasts so many times as long as it took to find
LONGEST = 2.0  # seconds that it lasts at most
MOST = 1000  # answers of one kind that are remembered


class Places:
    """Tells places and reasons."""

    def __init__(self, database: Database) -> None:
        async def places(tenant_id: str) -> dict[str, int]:
            order = await tunes.queue_order(database, tenant_id)
            return {tune_id: place for place, tune_id in enumerate(order, start=1)}

        async def offered(need: tuple[str, int]) -> bool:
            return await trainers.offers_engine(database, *need)

        async def held_back(tenant_id: str) -> str | None:
            tenant = await tenants.find_tenant(database, tenant_id)
            return limit_sentence(tenant.running, tenant.running_limit)

        self._places = Remembered(places)
        self._offered = Remembered(offered)
        self._held_back = Remembered(held_back)

    async def standing(self, tune: Tune) -> tuple[int | None, str | None]:
        """Place, 1 is next, and reason; None where the tune is not queued, or not pending."""
        if tune.state is TuneState.ASSIGNED:
            return None, "a trainer is taking it on"
        if tune.state is not TuneState.QUEUED:
            return None, None
        places = await self._places.get(tune.tenant_id)
        # One that came after the count is put behind the others, where it is unless its priority is higher.
        place = places.setdefault(tune.id, len(places) + 1)
        if not await self._offered.get((tune.engine, tune.memory_class)):
            memory = f" with {tune.memory_class} GiB of memory" if tune.memory_class else ""
            return place, f"no connected trainer{memory} offers {tune.engine}"
        return place, await self._held_back.get(tune.tenant_id) or "it waits for a free trainer"


def limit_sentence(running: int, limit: int) -> str | None:
    """Why no further tune of a tenant may run; None where one may."""
    if running < limit:
        return None
    if limit == 0:
        return "none of your tunes may run"
    verb = "tune is" if running == 1 else "tunes are"
    return f"your {running} running {verb} as many as may run"


@dataclass
class _Answer(Generic[Value]):
    value: Value
    until: float  # by the monotonic clock


class Remembered(Generic[Key, Value]):
    """What `find` answers, remembered for a while. Who asks while it is being found waits for the same answer."""

    def __init__(self, find: Callable[[Key], Awaitable[Value]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._clock = clock
        self._answers: dict[Key, _Answer[Value]] = {}
        # A lock is there for as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def get(self, key: Key) -> Value:
        """The answer, found now or a short while ago."""
        known = self._answers.get(key)
        if known is not None and self._clock() < known.until:
            return known.value
        asked = self._clock()
        async with self._locks.setdefault(key, asyncio.Lock()):
            known = self._answers.get(key)
            if known is None or known.until < asked:
                known = await self._find_anew(key)
        return known.value

    async def _find_anew(self, key: Key) -> _Answer[Value]:
        started = self._clock()
        value = await self._find(key)
        ended = self._clock()
        answer = _Answer(value, ended + min(SHARE * (ended - started), LONGEST))
        if len(self._answers) >= MOST:
            self._answers.clear()
        self._answers[key] = answer
        return answer

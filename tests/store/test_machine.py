"""Random lives of tunes, through two gateways, on both databases, beside the model of them.

Each step asks the store and its model the same: one call, or two or three at once through both gateways, where the
store must have answered as the model does in one order or another. Then the rows must be the model's, and hold what
invariants.py says whatever the model thinks.

Some lives, always the same, unless TUNESMITH_LIVES says how many others to try; then what fails is made small.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import text

from store import assets, keys, leases
from store.database import Database
from store.leases import HeldAction, LeaseRef
from store.reports import Outcome
from store.states import LEASED, TERMINAL
from store.webhooks import endpoints
from store.webhooks.tables import EVENT_TYPES
from tests.store import invariants
from tests.store.agreement import explained
from tests.store.calls import LARGE, LEASE, TRAINERS, Call, Caller, Party
from tests.store.invariants import Rows
from tests.store.model import Model, Tenant
from tests.store.world import ENGINE, World, make_world

Result = TypeVar("Result")
#: A long run by hand sets it: so many lives, other ones each time.
LIVES = int(os.environ.get("TUNESMITH_LIVES", "0"))
SEEDS = 4  # otherwise
#: Of one seed. Only the first ten are drawn afresh: after these Hypothesis tries variations on the lives before.
LIVES_OF_A_SEED = 9
LENGTH = 30  # steps of a life
HOP = 0.35 * LEASE  # less than the silence after which we count as having been away

PICK = st.integers(0, 10_000)
GATEWAY = st.integers(0, 1)
TRAINER = st.integers(0, len(TRAINERS) - 1)
AGAIN = st.sampled_from([0, 0, 0, 1, 2, -2])
MORE = st.sampled_from([1, 3, -2])
FORGOTTEN = st.sets(PICK, max_size=1)
#: What each kind of call is made of, and how often it is made beside the others.
KINDS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "submit": (
        2,
        {
            "tenant": GATEWAY,
            "name": st.integers(0, 7),
            "body": st.integers(0, 1),
            "request": st.sampled_from([0, 1, None]),
            "priority": st.integers(0, 1),
            "memory_class": st.sampled_from([0, 0, LARGE]),
            "checkpoint": st.integers(0, 1),
            "ready": st.sampled_from([True, True, True, False]),
        },
    ),
    "cancel": (3, {"pick": PICK}),
    "delete": (3, {"pick": PICK}),
    "claim": (6, {"trainer": TRAINER, "memory": st.sampled_from([8, LARGE]), "warm": st.sampled_from([None, 0, 1])}),
    "accept": (5, {"pick": PICK}),
    "withdraw": (2, {"pick": PICK}),
    "renew": (2, {"trainer": TRAINER, "forgotten": FORGOTTEN}),
    "cancelled": (1, {"trainer": TRAINER}),
    "restate": (
        3,
        {
            "trainer": TRAINER,
            "forgotten": FORGOTTEN,
            "uptime": st.sampled_from([0.0, 10 * LEASE]),
            "session": st.sampled_from([None, None, 0, 1]),
        },
    ),
    "reap": (1, {}),
    "progress": (3, {"pick": PICK, "more": MORE, "measured": st.booleans()}),
    "event": (1, {"pick": PICK, "again": AGAIN}),
    "recipe": (1, {"pick": PICK, "again": AGAIN, "rank": st.integers(1, 2)}),
    "snapshot": (3, {"pick": PICK, "again": AGAIN, "more": MORE}),
    "finish": (4, {"pick": PICK, "again": AGAIN, "more": MORE}),
    "fail": (
        2,
        {
            "pick": PICK,
            "again": AGAIN,
            "refused": st.booleans(),
            "retryable": st.booleans(),
            "crashed": st.booleans(),
        },
    ),
    "observe_cancel": (1, {"pick": PICK, "again": AGAIN, "more": MORE}),
    "give_back": (1, {"pick": PICK, "again": AGAIN, "more": MORE}),
    "connect": (2, {"trainer": TRAINER, "boot": st.integers(0, 1), "session": st.integers(0, 3)}),
    "seen": (1, {"trainer": TRAINER, "session": st.integers(0, 3), "free_slots": st.integers(0, 1)}),
    "disconnect": (1, {"trainer": TRAINER, "session": st.integers(0, 3)}),
}
PLAIN = {"body": 0, "priority": 0, "memory_class": 0, "ready": True}  # a submission
Asked = tuple[str, dict[str, Any]]
REPORTS = ("progress", "event", "recipe", "snapshot", "finish", "fail", "observe_cancel", "give_back")


def asked(*kinds: str) -> st.SearchStrategy[Asked]:
    """One call: its kind, one of all unless told otherwise, and what it is made of."""
    often = [kind for kind in kinds or KINDS for _ in range(KINDS[kind][0])]
    return st.sampled_from(often).flatmap(lambda kind: st.tuples(st.just(kind), st.fixed_dictionaries(KINDS[kind][1])))


def several(*kinds: str) -> st.SearchStrategy[list[Asked]]:
    """As many as are worth trying every order of."""
    return st.lists(asked(*kinds), min_size=2, max_size=3)


def twice() -> st.SearchStrategy[list[Asked]]:
    """One call that comes through both gateways."""
    return st.one_of(asked("submit"), asked()).map(lambda call: [call, call])


class Lives(RuleBasedStateMachine):
    """All lives share one database, emptied before each."""

    loop: asyncio.AbstractEventLoop
    gateways: Sequence[Database]  # two on PostgreSQL; SQLite has one
    parties: Sequence[Party]
    seen: Counter[str]  # in all lives: those in which nothing happened would prove nothing

    def __init__(self) -> None:
        super().__init__()
        self.run(_empty(self.gateways[0]))
        self.rows = self.run(invariants.read(self.gateways[0]))
        self.model = Model()
        for row in self.rows.tenants.values():
            self.model.tenants[row.id] = Tenant(row.id, row.weight, row.running_limit, row.queue_limit)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    @initialize(started=st.integers(0, 3))
    def begin(self, started: int) -> None:
        """Four tunes, two a tenant, of which some run and have been so far that there is a snapshot."""
        for number in range(4):
            tenant, which = number % 2, number // 2
            self.ask([("submit", {**PLAIN, "tenant": tenant, "name": which, "request": which, "checkpoint": which})])
        for number in range(started):
            self.ask([("claim", {"trainer": number, "memory": LARGE, "warm": None})])
            self.ask([("accept", {"pick": 4 * number + 1})])
            self.ask([("snapshot", {"pick": 4 * number + 1, "again": 0, "more": 3})])

    @rule(call=asked(), gateway=GATEWAY)
    def one(self, call: Asked, gateway: int) -> None:
        self.ask([call], gateway)

    @rule(call=asked("submit", "cancel", "delete"), gateway=GATEWAY)
    def owner(self, call: Asked, gateway: int) -> None:
        self.ask([call], gateway)

    @rule(call=asked(*REPORTS), gateway=GATEWAY)
    def report(self, call: Asked, gateway: int) -> None:
        self.ask([call], gateway)

    @rule(calls=st.one_of(several(), several(), several(*REPORTS), several("claim"), twice()))
    def at_once(self, calls: list[Asked]) -> None:
        self.ask(calls)
        self.seen["at once"] += 1

    @rule(hops=st.sampled_from([1, 2, 3, 3, None]), call=asked("claim", "reap", "renew", "restate"))
    def time_passes(self, hops: int | None, call: Asked) -> None:
        """Some gateway reaps all the while. After three hops every lease has ended that was not renewed, and nobody has
        reaped since the last one did. None: nobody reaps for longer than a lease.
        """
        for _ in range(hops or 0):
            assert self.run(leases.reap(self.gateways[0], LEASE)) == self.model.reap(LEASE)
            self._pass(HOP)
        if hops is None:
            self._pass(2.2 * LEASE)
            self.seen["away"] += 1
        self.ask([call])

    @rule(pick=PICK, call=asked("claim"))
    def cancelled_and_lost(self, pick: int, call: Asked) -> None:
        """What never runs again, though nobody has ended it when somebody looks for a tune to run."""
        self.ask([("cancel", {"pick": pick})])
        self.time_passes(3, call)

    def ask(self, asked: Sequence[Asked], gateway: int = 0) -> None:
        """Calls the store, all at once, from that gateway on, and finds out in what order it took them."""
        caller = Caller(self.model, self.parties)
        calls: list[Call] = [getattr(caller, kind)(**made_of) for kind, made_of in asked]

        async def ask_all() -> list[Any]:
            gateways = itertools.cycle((*self.gateways[gateway:], *self.gateways[:gateway]))
            return await asyncio.gather(*(call.ask(next(gateways)) for call in calls))

        answers = self.run(ask_all())
        before, self.rows = self.rows, self.run(invariants.read(self.gateways[0]))
        found = invariants.violations(before, self.rows)
        assert not found, "\n".join([*(call.told for call in calls), *found])
        self._count(answers, before)
        self.model = explained(self.model, calls, answers, before, self.rows)

    def _pass(self, seconds: float) -> None:
        self.run(self.gateways[0].move_clock(seconds))
        self.model.advance(seconds)

    def _count(self, answers: Sequence[Any], before: Rows) -> None:
        for answer in answers:
            told = answer[0] if isinstance(answer, tuple) else answer
            if isinstance(told, Outcome):
                self.seen[told] += 1
            if isinstance(told, type):
                self.seen[told.__name__] += 1
            if isinstance(told, LeaseRef):
                lost = told.tune_id in before.tunes and before.tunes[told.tune_id].state in LEASED
                self.seen["taken over" if lost else "claimed"] += 1
            if isinstance(answer, dict):
                self.seen.update(answer.values())
        ended = (row for id, row in self.rows.tunes.items() if row.state in TERMINAL and id in before.tunes)
        self.seen.update(row.state for row in ended if before.tunes[row.id].state not in TERMINAL)


async def _empty(database: Database) -> None:
    """Two tenants, their files and two checkpoints stay."""
    await database.move_clock(-database._moved)
    async with database.write() as transaction:
        for statement in (
            "DELETE FROM webhook_deliveries",
            "DELETE FROM events",
            "DELETE FROM tunes",
            "DELETE FROM queues",
            "DELETE FROM trainers",
            "DELETE FROM assets WHERE role IS NOT NULL",
            "UPDATE tenants SET queued = 0, running = 0, served_at = NULL",
            "UPDATE liveness SET seen_at = tunesmith_now(), grace_until = tunesmith_later(-1)",
        ):
            await transaction.execute(text(statement))


async def _prepare(database: Database) -> list[Party]:
    """Two tenants: the second has twice the weight, and may have one tune running and three waiting. Each has
    an address that is told of everything.
    """
    first = await make_world(database)
    tenant = await keys.create_tenant(database, "heavy", weight=2.0)
    for name in ("acme", "heavy"):
        await endpoints.add(database, name, "https://receiver.example/", EVENT_TYPES)
    async with database.write() as transaction:
        await transaction.execute(text("UPDATE tenants SET running_limit = 1, queue_limit = 3 WHERE name = 'heavy'"))
    other = await assets.publish(database, "tunesmith", "other", ENGINE, {"builtin": "other"})
    checkpoints = (first.checkpoint.id, other.id)
    worlds = [first, World(database, tenant, first.checkpoint)]
    return [
        Party(world, {ready: await world.file(ready=ready) for ready in (True, False)}, checkpoints) for world in worlds
    ]


@contextlib.contextmanager
def _open(loop: asyncio.AbstractEventLoop, url: str) -> Iterator[list[Database]]:
    gateways = 1 if url.startswith("sqlite") else 2
    opened = [loop.run_until_complete(Database.open(url)) for _ in range(gateways)]
    yield opened
    for database in opened:
        loop.run_until_complete(database.close())


SETTINGS = settings(
    max_examples=LIVES_OF_A_SEED,
    # To make small what was found takes minutes: by hand, then.
    phases=[Phase.generate, Phase.shrink] if LIVES else [Phase.generate],
    stateful_step_count=LENGTH,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_life_of_a_tune(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), _open(loop, database_url) as gateways:
        seen: Counter[str] = Counter()
        parties = loop.run_until_complete(_prepare(gateways[0]))
        here = {"loop": loop, "gateways": gateways, "parties": parties, "seen": seen}
        for number in range(math.ceil(LIVES / LIVES_OF_A_SEED) or SEEDS):
            machine = seed(random.getrandbits(32) if LIVES else number)(type("LivesHere", (Lives,), here))
            run_state_machine_as_test(machine, settings=SETTINGS)
    print(seen)
    wanted = {"claimed", "taken over", "at once", "away", *Outcome, *TERMINAL, *HeldAction}
    assert {each for each in wanted if not seen[each]} == set(), f"the lives never saw these; they saw {seen}"

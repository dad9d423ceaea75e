"""Random lives of tunes, through two gateways at once, on both databases.

After every step it holds: a final state is reached once and never left; epochs only grow; nothing of an old epoch is
accepted; counters equal a recount; a cancelled tune never runs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select, text

from store import leases, reports, tunes
from store.database import Database
from store.leases import Held, HeldAction, LeaseRef, Snapshot
from store.reports import LoraResult, Outcome
from store.states import LEASED, TERMINAL, TuneState
from store.tables import Tune, queues, record, tenants
from store.tables import events as events_table
from store.tables import tunes as tunes_table
from tests.store.world import LEASE, World, make_world

Result = TypeVar("Result")
TRAINERS = ("trainer-1", "trainer-2", "trainer-3")
GATEWAYS = st.integers(0, 1)
PICK = st.integers(0, 10_000)  # which of those that there are
#: A long run by hand sets it: so many examples, other ones each time. Else a few, always the same.
LIVES = int(os.environ.get("TUNESMITH_LIVES", "0"))
NUMBERS = itertools.count(1)


def has_leases(lives: Lives) -> bool:
    """Whether there is anything to report of."""
    return bool(lives.leases)


class Lives(RuleBasedStateMachine):
    """The model knows what was claimed and asked for; the database says what became of it.

    All runs share one database, emptied before each.
    """

    loop: asyncio.AbstractEventLoop
    worlds: tuple[World, World]
    seen: Counter[str]  # of all runs: one that disturbed nothing would prove nothing

    def __init__(self) -> None:
        super().__init__()
        self.leases: list[LeaseRef] = []  # every one that was ever given
        self.sequence: dict[LeaseRef, int] = {}  # the newest report of each
        self.cancelled: set[str] = set()
        self.last: dict[str, Tune] = {}  # as each tune was seen last

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def world(self, gateway: int) -> World:
        return self.worlds[gateway]

    @initialize(started=st.integers(0, 3))
    def begin(self, started: int) -> None:
        """Three tunes, of which some run."""
        self.run(_empty(self.worlds[0].database))
        for _ in range(3):
            self.submit(gateway=0, priority=0, ready=True)
        self.holds()
        for number in range(started):
            self.claim(gateways=[0], pick=number)
            self.holds()
            self.accept(gateway=0, pick=number)

    @rule(gateway=GATEWAYS, priority=st.integers(0, 1), ready=st.sampled_from([True, True, True, False]))
    def submit(self, gateway: int, priority: int, ready: bool) -> None:
        async def work() -> Tune:
            file = await self.world(gateway).file(ready=ready)
            new = self.world(gateway).new_tune([file], priority=priority, name=f"tune-{next(NUMBERS)}")
            return (await tunes.submit(self.world(gateway).database, new)).tune

        tune = self.run(work())
        assert tune.state is TuneState.QUEUED

    @rule(gateways=st.lists(GATEWAYS, min_size=1, max_size=3), pick=PICK)
    def claim(self, gateways: list[int], pick: int) -> None:
        async def work() -> list[leases.Claim | None]:
            offers = [(self.world(gateway), TRAINERS[(pick + turn) % 3]) for turn, gateway in enumerate(gateways)]
            return await asyncio.gather(*(world.claim(trainer) for world, trainer in offers))

        for claim in filter(None, self.run(work())):
            assert claim.tune.id not in self.cancelled
            assert claim.lease not in self.leases
            assert all(lease.epoch < claim.lease.epoch for lease in self.leases if lease.tune_id == claim.tune.id)
            self.leases.append(claim.lease)
            self.seen["taken over" if self.last[claim.tune.id].state in LEASED else "claimed"] += 1

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK)
    def accept(self, gateway: int, pick: int) -> None:
        lease = self._picked(pick)
        current = self._is_current(lease)
        assert self.run(leases.accept(self.world(gateway).database, lease)) == current

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK)
    def withdraw(self, gateway: int, pick: int) -> None:
        lease = self._picked(pick)
        may = self._is_current(lease) and self.last[lease.tune_id].state is TuneState.ASSIGNED
        assert self.run(leases.withdraw(self.world(gateway).database, lease, "NO_FREE_SLOT")) == may

    @rule(gateway=GATEWAYS, trainer=st.sampled_from(TRAINERS))
    def beat(self, gateway: int, trainer: str) -> None:
        held = [lease for lease in self.leases if lease.trainer_id == trainer]
        current = [lease for lease in held if self._is_current(lease)]

        renewal = self.run(leases.renew(self.world(gateway).database, trainer, held, LEASE))

        assert renewal.extended == current
        assert renewal.cancelled == [lease for lease in current if lease.tune_id in self.cancelled]

    @rule(gateway=GATEWAYS, trainer=st.sampled_from(TRAINERS), forgets=st.sets(PICK, max_size=2))
    def hello(self, gateway: int, trainer: str, forgets: set[int]) -> None:
        held = [lease for lease in self.leases if lease.trainer_id == trainer]
        forgotten = {held[number % len(held)] for number in forgets if held}
        stated = [Held(lease, result_pending=bool(lease.epoch % 2)) for lease in held if lease not in forgotten]
        current = {lease for lease in held if self._is_current(lease)}

        actions = self.run(leases.restate(self.world(gateway).database, trainer, stated, LEASE))

        for each in stated:
            goes_on = HeldAction.SEND_RESULT if each.result_pending else HeldAction.CONTINUE
            assert actions[each.lease] == (goes_on if each.lease in current else HeldAction.ABORT)
        assert not any(self._is_current(lease, fresh=True) for lease in forgotten)

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK, again=st.booleans())
    def snapshot(self, gateway: int, pick: int, again: bool) -> None:
        lease = self._picked(pick)
        step = next(NUMBERS)
        self._report(
            lease,
            again,
            lambda seq: reports.record_snapshot(
                self.world(gateway).database, lease, seq, Snapshot(f"incoming/{step}", step, "a" * 64, 1)
            ),
        )

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK, again=st.booleans())
    def finish(self, gateway: int, pick: int, again: bool) -> None:
        lease = self._picked(pick)
        result = LoraResult(f"loras/{next(NUMBERS)}", "a" * 64, 1, 10, 0.1, 1)

        async def work(seq: int) -> Outcome:
            return (await reports.finish(self.world(gateway).database, lease, seq, result))[0]

        if self._report(lease, again, work) is Outcome.RECORDED:
            wanted = TuneState.CANCELLED if lease.tune_id in self.cancelled else TuneState.SUCCEEDED
            assert self.run(self.world(gateway).tune(lease.tune_id)).state is wanted

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK, again=st.booleans(), retryable=st.booleans(), crashed=st.booleans())
    def fail(self, gateway: int, pick: int, again: bool, retryable: bool, crashed: bool) -> None:
        lease = self._picked(pick)
        database = self.world(gateway).database
        self._report(
            lease,
            again,
            lambda seq: reports.fail(database, lease, seq, "X", "x", retryable=retryable, crashed=crashed),
        )

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK, again=st.booleans())
    def give_back(self, gateway: int, pick: int, again: bool) -> None:
        lease = self._picked(pick)
        self._report(lease, again, lambda seq: reports.give_back(self.world(gateway).database, lease, seq, 0))

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK, steps=st.integers(0, 9))
    def progress(self, gateway: int, pick: int, steps: int) -> None:
        lease = self._picked(pick)
        current = self._is_current(lease)
        work = reports.record_progress(self.world(gateway).database, lease, "training", steps)
        assert self.run(work) == current

    @rule(gateway=GATEWAYS, pick=PICK)
    def cancel(self, gateway: int, pick: int) -> None:
        if self.last:
            tune_id = [*self.last][pick % len(self.last)]
            tune = self.run(tunes.cancel(self.world(gateway).database, self.worlds[0].tenant.id, tune_id))
            if tune.state not in (TuneState.SUCCEEDED, TuneState.FAILED):
                self.cancelled.add(tune_id)

    @rule(leases_long=st.sampled_from([0.3, 1.1]))
    def time_passes(self, leases_long: float) -> None:
        self.run(self._pass(LEASE * leases_long))

    @precondition(has_leases)
    @rule(gateway=GATEWAYS, pick=PICK)
    def trainers_are_lost(self, gateway: int, pick: int) -> None:
        self.run(self._pass(LEASE * 1.1))
        self.holds()
        self.claim(gateways=[gateway], pick=pick)

    @rule()
    def we_are_away(self) -> None:
        running = [tune.id for tune in self.last.values() if tune.state in LEASED]

        async def work() -> None:
            await self._move(10 * LEASE)
            await leases.reap(self.worlds[0].database, LEASE)

        self.run(work())
        for tune_id in running:
            assert self.run(self.worlds[0].tune(tune_id)).state in LEASED

    @invariant()
    def holds(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        async with self.worlds[0].database.read() as connection:
            rows = [record(Tune, row) for row in await connection.execute(select(tunes_table))]
            written = (await connection.execute(select(events_table.c.tune_id, func.count()).group_by("tune_id"))).all()
            tenant = (await connection.execute(select(tenants).where(tenants.c.id == self.worlds[0].tenant.id))).one()
            queued = (await connection.execute(select(func.coalesce(func.sum(queues.c.queued), 0)))).scalar_one()
        for tune in rows:
            before = self.last.get(tune.id)
            if before is not None and before.state in TERMINAL:
                assert tune.model_dump() == before.model_dump()
            if before is not None and before.state not in TERMINAL:
                self.seen[tune.state] += tune.state in TERMINAL
            if before is not None:
                assert tune.lease_epoch >= before.lease_epoch
            if tune.id in self.cancelled:
                assert tune.state in (*LEASED, TuneState.CANCELLED)
        self.last = {tune.id: tune for tune in rows}
        states = [tune.state for tune in rows]
        assert tenant.queued == queued == states.count(TuneState.QUEUED)
        assert tenant.running == sum(state in LEASED for state in states)
        assert {tune.id: tune.event_seq for tune in rows} == dict(map(tuple, written))

    def _picked(self, pick: int) -> LeaseRef:
        """One of the leases; more often than not one that lasts."""
        current = [lease for lease in self.leases if self._is_current(lease)]
        among = current if current and pick % 3 < 2 else self.leases
        return among[pick // 3 % len(among)]

    def _is_current(self, lease: LeaseRef, *, fresh: bool = False) -> bool:
        """What the fence must say: by the model's last look, or by a new one."""
        tune = self.run(self.worlds[0].tune(lease.tune_id)) if fresh else self.last[lease.tune_id]
        return tune.state in LEASED and tune.lease_epoch == lease.epoch and tune.lease_trainer_id == lease.trainer_id

    def _report(self, lease: LeaseRef, again: bool, send: Any) -> Outcome:
        """Sends a new report, or a number that was sent before; holds the outcome against the model."""
        sent = self.sequence.get(lease, 0)
        seq = sent if again and sent else sent + 1
        newest = all(other.epoch <= lease.epoch for other in self.leases if other.tune_id == lease.tune_id)
        wanted = Outcome.STALE
        if newest and seq == sent:
            wanted = Outcome.ALREADY_RECORDED
        elif self._is_current(lease):
            wanted = Outcome.RECORDED
        outcome: Outcome = self.run(send(seq))
        assert outcome is wanted
        self.seen[outcome] += 1
        if outcome is Outcome.RECORDED:
            self.sequence[lease] = seq
        return outcome

    async def _pass(self, seconds: float) -> None:
        hop = LEASE * 0.4  # less than the silence after which we count as having been away
        while seconds > 0:
            await self._move(min(hop, seconds))
            await leases.reap(self.worlds[0].database, LEASE)
            seconds -= hop

    async def _move(self, seconds: float) -> None:
        await self.worlds[0].database.move_clock(seconds)
        self.worlds[1].database._moved = self.worlds[0].database._moved  # of two SQLite gateways each has its own


async def _empty(database: Database) -> None:
    async with database.write() as transaction:
        for statement in (
            "DELETE FROM events",
            "DELETE FROM tunes",
            "DELETE FROM queues",
            "DELETE FROM assets WHERE asset_type <> 'checkpoint'",
            "UPDATE tenants SET queued = 0, running = 0",
            "UPDATE liveness SET seen_at = tunesmith_now(), grace_until = tunesmith_later(-1)",
        ):
            await transaction.execute(text(statement))


@contextlib.contextmanager
def _gateways(loop: asyncio.AbstractEventLoop, url: str) -> Iterator[tuple[World, World]]:
    async def opened() -> tuple[World, World]:
        first = await make_world(await Database.open(url))
        return first, await first.other_gateway(url)

    worlds = loop.run_until_complete(opened())
    yield worlds
    for world in worlds:
        loop.run_until_complete(world.database.close())


def test_the_life_of_a_tune(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), _gateways(loop, database_url) as worlds:
        seen: Counter[str] = Counter()
        machine = type("LivesHere", (Lives,), {"loop": loop, "worlds": worlds, "seen": seen})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=LIVES or 12,
                derandomize=not LIVES,
                phases=[Phase.generate, Phase.shrink]
                if LIVES
                else [Phase.generate],  # to shrink what was found takes minutes: by hand, then
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(seen)
    wanted = {"claimed", "taken over", *Outcome, *TERMINAL}
    assert {each for each in wanted if not seen[each]} == set(), f"the runs never saw these; they saw {seen}"

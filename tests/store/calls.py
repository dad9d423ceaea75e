"""Calls of the store, each with the same call of its model: what test_machine.py makes random lives of. Knows what both
are asked, and not whether they answer alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from store import leases, reports, trainers, tunes
from store.attempts import Held, LeaseRef, Offer, Snapshot
from store.database import Database
from store.errors import DatabaseAway, StoreError
from store.reports import LoraResult
from store.states import LEASED
from store.tables import Asset
from store.trainers import Hello
from tests.store.model import Model
from tests.store.world import ENGINE, World

#: So long that the time which a run takes is nothing beside it: the model's clock need not be the database's.
LEASE = 100_000.0  # seconds
TRAINERS = ("trainer-1", "trainer-2", "trainer-3")
LARGE = 24  # GiB: a tune's memory class, and what a large trainer has
SHA256 = "a" * 64


@dataclass(frozen=True)
class Call:
    """One call."""

    told: str
    """For who reads a failing example."""
    store: Callable[[Database], Awaitable[Any]]
    """Asks the store."""
    model: Callable[[Model, Any, Collection[str]], Any]
    """Asks the model. Given are the store's answer, for the ids that it makes up, and the ids of tunes and tenants
    whose rows are locked, where it passes over such rows.
    """
    rows: frozenset[str] = frozenset()
    """Ids of tunes and tenants whose rows it may lock. Of those that it chooses itself, only the changes tell."""
    passes: bool = False
    """Whether it passes over rows that somebody has locked."""

    async def ask(self, database: Database) -> Any:
        """The store's answer; a refusal is one too."""
        try:
            return await self.store(database)
        except DatabaseAway:
            raise  # a deadlock, perhaps
        except StoreError as refusal:
            return type(refusal)

    def expect(self, model: Model, answer: Any, passing: Collection[str] = ()) -> Any:
        """The model's answer."""
        try:
            return self.model(model, answer, passing)
        except StoreError as refusal:
            return type(refusal)


@dataclass(frozen=True)
class Party:
    """A tenant with what it asks for tunes with."""

    world: World
    """Its own."""
    files: dict[bool, Asset]
    """An uploaded one, and one that is not."""
    checkpoints: tuple[str, str]
    """Ids of two base checkpoints."""


class Caller:
    """Makes calls out of drawn numbers and of what the model knows: each method one kind. `pick` is any number, and
    chooses one of those that there are.
    """

    def __init__(self, model: Model, parties: Sequence[Party]) -> None:
        self.model = model
        self.parties = parties

    # ---- Owners

    def submit(
        self,
        tenant: int,
        name: int,
        body: int,
        request: int | None,
        priority: int,
        memory_class: int,
        checkpoint: int,
        ready: bool,
    ) -> Call:
        """Few names, bodies and request ids, so that they meet."""
        party = self.parties[tenant]
        owner = party.world.tenant.id
        asked: dict[str, Any] = {
            "name": f"name-{name}",
            "request_hash": f"body-{body}",
            "request_id": None if request is None else f"request-{request}",
            "priority": priority,
            "memory_class": memory_class,
        }
        base = party.checkpoints[checkpoint]
        new = party.world.new_tune([party.files[ready]], checkpoint_ref=base, **asked)

        async def store(database: Database) -> Any:
            submitted = await tunes.submit(database, new)
            return submitted.tune.id, submitted.replayed

        def same(model: Model, answer: Any, _: Collection[str]) -> Any:
            made = answer[0] if isinstance(answer, tuple) and answer[0] not in model.tunes else None
            submitted = model.submit(owner, tune_id=made, checkpoint=base, ready=ready, **asked)
            return submitted.tune.id, submitted.replayed

        return Call(f"submit({owner!r}, {asked}, {ready=})", store, same, frozenset({owner}))

    def cancel(self, pick: int) -> Call:
        """One of all tunes."""
        owner, tune_id = self._tune(pick)
        return _alike(tunes.cancel, owner, tune_id, rows={tune_id})

    def delete(self, pick: int) -> Call:
        """One of all tunes."""
        owner, tune_id = self._tune(pick)
        return _alike(tunes.delete, owner, tune_id, rows={tune_id})

    # ---- Leases

    def claim(self, trainer: int, memory: int, warm: int | None) -> Call:
        """By a small trainer or a large one, with a checkpoint in its memory or none."""
        resident = () if warm is None else (self.parties[0].checkpoints[warm],)
        offer = Offer(TRAINERS[trainer], [ENGINE], memory * 2**30, resident)

        async def store(database: Database) -> Any:
            claim = await leases.claim(database, offer, LEASE)
            return None if claim is None else (claim.lease, claim.snapshot, claim.tune.step)

        def same(model: Model, _: Any, passing: Collection[str]) -> Any:
            claim = model.claim(offer, LEASE, passing=passing)
            return None if claim is None else (claim.lease, claim.snapshot, claim.tune.step)

        return Call(f"claim({offer})", store, same, passes=True)

    def accept(self, pick: int) -> Call:
        """By a trainer that was given it, whenever that was."""
        return self._attempt(leases.accept, pick)

    def withdraw(self, pick: int) -> Call:
        """As a trainer that rejects, or does not answer."""
        return self._attempt(leases.withdraw, pick, "NO_FREE_SLOT")

    def renew(self, trainer: int, forgotten: set[int]) -> Call:
        """All that the trainer was ever given, but for those that it forgets."""
        trainer_id, held = self._held(trainer, forgotten)
        return _alike(leases.renew, trainer_id, held, LEASE, rows={ref.tune_id for ref in held})

    def cancelled(self, trainer: int) -> Call:
        """Of that trainer and the one before it."""
        theirs = [TRAINERS[trainer], TRAINERS[trainer - 1]]

        async def store(database: Database) -> Any:
            return sorted(await leases.cancelled(database, theirs))

        return Call(f"cancelled({theirs})", store, lambda model, *_: sorted(model.cancelled(theirs)))

    def restate(self, trainer: int, forgotten: set[int], uptime: float, session: int | None) -> Call:
        """All that the trainer was ever given, but for those that it forgets: of these it has no lease any more. By the
        newest stream or an older one.
        """
        trainer_id, held = self._held(trainer, forgotten)
        stated = [Held(ref, result_pending=bool(ref.epoch % 2)) for ref in held]
        theirs = {tune.id for tune in self.model.tunes.values() if tune.holder == trainer_id}
        session_id = None if session is None else f"session-{session}"
        return _alike(leases.restate, trainer_id, stated, LEASE, uptime, session_id, rows=theirs)

    def reap(self) -> Call:
        """Any gateway's."""

        async def store(database: Database) -> Any:
            return await leases.reap(database, LEASE)

        def same(model: Model, _: Any, passing: Collection[str]) -> Any:
            return model.reap(LEASE, passing=passing)

        return Call("reap()", store, same, passes=True)

    # ---- Reports. `again`: how many numbers before the next one's the report has; a negative one leaves some out.

    def progress(self, pick: int, more: int, measured: bool) -> Call:
        """Steps may be told late: `more` may be negative."""
        step = self._step(pick, more)
        metrics = [{"step": step, "loss": 0.5, "learning_rate": 1e-4, "steps_per_second": 2.0}] if measured else []
        return self._attempt(reports.record_progress, pick, "training", step, metrics)

    def event(self, pick: int, again: int) -> Call:
        """A warning."""
        body = {"reason": "CAPTION_CUT", "details": "x"}
        return self._attempt(reports.record_event, pick, self._seq(pick, again), "warning", body)

    def recipe(self, pick: int, again: int, rank: int) -> Call:
        """What one attempt resolved."""
        resolved = f'{{"rank":{rank}}}'
        return self._attempt(reports.record_recipe, pick, self._seq(pick, again), resolved, SHA256)

    def snapshot(self, pick: int, again: int, more: int) -> Call:
        """Newer than what was told, or older."""
        step = self._step(pick, more)
        taken = Snapshot(f"incoming/{pick}/{step}", step, SHA256, 9)
        return self._attempt(reports.record_snapshot, pick, self._seq(pick, again), taken)

    def finish(self, pick: int, again: int, more: int) -> Call:
        """A LoRA."""
        result = LoraResult(f"loras/{pick}/{again}", SHA256, 1, self._step(pick, more), 0.1, 1)
        return self._attempt(reports.finish, pick, self._seq(pick, again), result)

    def fail(self, pick: int, again: int, refused: bool, retryable: bool, crashed: bool) -> Call:
        """An attempt that broke, or could not go on from its snapshot."""
        reason = reports.SNAPSHOT_REFUSED if refused else "ENGINE_DIED"
        fate = {"retryable": retryable, "crashed": crashed}
        return self._attempt(reports.fail, pick, self._seq(pick, again), reason, "x", **fate)

    def observe_cancel(self, pick: int, again: int, more: int) -> Call:
        """Also where nobody had cancelled."""
        return self._attempt(reports.observe_cancel, pick, self._seq(pick, again), self._step(pick, more))

    def give_back(self, pick: int, again: int, more: int) -> Call:
        """A trainer that leaves."""
        return self._attempt(reports.give_back, pick, self._seq(pick, again), self._step(pick, more))

    # ---- Trainers

    def connect(self, trainer: int, boot: int, session: int) -> Call:
        """A Hello; what it holds is restate()'s."""
        hello = Hello(TRAINERS[trainer], f"boot-{boot}", f"session-{session}", "gateway-1", [ENGINE], 1)
        return _alike(trainers.connect, hello)

    def seen(self, trainer: int, session: int, free_slots: int) -> Call:
        """Of the newest stream or an older one."""
        return _alike(trainers.seen, TRAINERS[trainer], f"session-{session}", free_slots)

    def disconnect(self, trainer: int, session: int) -> Call:
        """The end of the newest stream or of an older one."""
        return _alike(trainers.disconnect, TRAINERS[trainer], f"session-{session}")

    # ---- What a number picks

    def _tune(self, pick: int) -> tuple[str, str]:
        """(its tenant's id, its id)."""
        everyone = [*self.model.tunes.values()]
        if not everyone:
            return self.parties[0].world.tenant.id, "tune_none"
        tune = everyone[pick % len(everyone)]
        return tune.tenant_id, tune.id

    def _lease(self, pick: int) -> LeaseRef:
        """One that was given: more often than not one that lasts, and now and then one that is a lie."""
        given = self.given()
        if not given:
            return LeaseRef("tune_none", 1, TRAINERS[0])
        lasting = [lease for lease in given if self.model.is_current(lease)]
        among = lasting if lasting and pick % 4 else given
        lease = among[pick // 4 % len(among)]
        if pick % 16 == 4:
            return LeaseRef(lease.tune_id, lease.epoch, "trainer-9")
        return LeaseRef(lease.tune_id, lease.epoch + 1, lease.trainer_id) if pick % 16 == 8 else lease

    def given(self) -> list[LeaseRef]:
        """Every lease that there ever was."""
        claims = (
            (tune, write)
            for tune in self.model.tunes.values()
            for write in tune.history
            if write.verb == "claim" and write.state in LEASED
        )
        return [LeaseRef(tune.id, write.epoch, write.holder or "") for tune, write in claims]

    def _held(self, trainer: int, forgotten: set[int]) -> tuple[str, list[LeaseRef]]:
        trainer_id = TRAINERS[trainer]
        given = [lease for lease in self.given() if lease.trainer_id == trainer_id]
        gone = {pick % len(given) for pick in forgotten if given}
        return trainer_id, [lease for place, lease in enumerate(given) if place not in gone]

    def _seq(self, pick: int, again: int) -> int:
        tune = self.model.tunes.get(self._lease(pick).tune_id)
        return max(1, (tune.reported_seq if tune else 0) + 1 - again)

    def _step(self, pick: int, more: int) -> int:
        tune = self.model.tunes.get(self._lease(pick).tune_id)
        return max(0, (tune.step if tune else 0) + more)

    def _attempt(self, function: Callable[..., Awaitable[Any]], pick: int, *arguments: Any, **named: Any) -> Call:
        lease = self._lease(pick)
        return _alike(function, lease, *arguments, rows={lease.tune_id}, **named)


def _alike(function: Callable[..., Awaitable[Any]], *arguments: Any, rows: Collection[str] = (), **named: Any) -> Call:
    """A call of the store's function, and of the model's method of the same name with the same arguments."""

    async def store(database: Database) -> Any:
        return _plain(await function(database, *arguments, **named))

    def same(model: Model, _: Any, __: Collection[str]) -> Any:
        return _plain(getattr(model, function.__name__)(*arguments, **named))

    shown = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in named.items())]
    return Call(f"{function.__name__}({', '.join(shown)})", store, same, frozenset(rows))


def _plain(answer: Any) -> Any:
    """An answer that holds a row, without what only the store knows of it."""
    if hasattr(answer, "session_id"):  # whom a Hello evicted
        return answer.session_id, answer.boot_id
    return (answer.id, answer.state) if hasattr(answer, "state") else answer

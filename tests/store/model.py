"""The life of tunes as the store promises it, in memory: what test_machine.py holds the real store against, and what a
simulation of the protocol takes for its database. Pure and synchronous; knows no SQL, no gateway and no wall clock.

Its methods have the names of the store's functions, mean the same by their arguments, and return the same plain
records; where the store returns rows, these are model_rows.py's. Time passes by advance() alone. What happens at one
time has an order all the same, that of the calls. copy.deepcopy() of a model goes its own way from there.

Left out, for nothing of a tune's life hangs on it: what became of single pictures, sentences for people, wake-ups.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from store.attempts import Held, HeldAction, LeaseRef, Offer, Renewal, Snapshot
from store.claims import GIB, WARM_WAIT
from store.errors import NameTaken, NotFound, QueueFull, RequestReused, StateForbids
from store.expiry import SILENCE
from store.moves import POISON_LIMIT
from store.reports import SNAPSHOT_REFUSED, LoraResult, Outcome
from store.states import LEASED, TERMINAL, TuneState, may_move
from store.submission import REPLAY_WINDOW
from store.trainers import Hello
from store.tunes import lora_asset_id
from tests.store.model_rows import Claim, Entry, Moment, Submitted, Tenant, Trainer, Tune, Write
from tests.store.world import LEASE

__all__ = ["Claim", "Entry", "Model", "Submitted", "Tenant", "Trainer", "Tune", "Write"]


class Model:
    """The tunes, tenants and trainers of one service that has been alive for longer than a lease."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.tenants: dict[str, Tenant] = {}
        self.tunes: dict[str, Tune] = {}
        self.trainers: dict[str, Trainer] = {}
        #: When any gateway last reaped, and before when no lease counts as ended.
        self.alive_at = now
        self.grace_until = now
        self._moments = 0

    def copy(self) -> Model:
        """Another one that goes its own way from here."""
        other = copy.copy(self)
        other.tenants = {id: replace(each) for id, each in self.tenants.items()}
        other.trainers = {id: replace(each) for id, each in self.trainers.items()}
        other.tunes = {
            id: replace(each, snapshots=[*each.snapshots], log=[*each.log], history=[*each.history])
            for id, each in self.tunes.items()
        }
        return other

    def advance(self, seconds: float) -> None:
        """Time passes; nobody reaps meanwhile."""
        self.now += seconds

    def tenant(self, tenant_id: str) -> Tenant:
        """The tenant, made where there was none."""
        return self.tenants.setdefault(tenant_id, Tenant(tenant_id))

    def count(self, tenant_id: str, states: Collection[TuneState]) -> int:
        """The tenant's tunes in these states."""
        return sum(tune.tenant_id == tenant_id and tune.state in states for tune in self.tunes.values())

    # ---- Owners: store/tunes.py

    def submit(self, tenant_id: str = "acme", *, tune_id: str | None = None, **asked: Any) -> Submitted:
        """`tune_id`: the one to make. `asked`: name, request_id, priority and what else a caller chooses of a Tune; the
        name and the request's hash are its own unless told otherwise. NameTaken, RequestReused, QueueFull.
        """
        tune_id = tune_id or f"tune_{len(self.tunes) + 1}"
        asked = {"name": tune_id, "request_hash": tune_id, **asked}
        earlier = self._earlier(tenant_id, asked)
        if earlier is not None:
            return Submitted(earlier, replayed=True)
        if self.count(tenant_id, {TuneState.QUEUED}) >= self.tenant(tenant_id).queue_limit:
            raise QueueFull("as many tunes wait as may")
        tune = self.tunes[tune_id] = Tune(id=tune_id, tenant_id=tenant_id, created=self._moment(), **asked)
        self._tell(tune, TuneState.QUEUED, "QUEUED")
        self._wrote(tune, "submit")
        return Submitted(tune, replayed=False)

    def _earlier(self, tenant_id: str, asked: dict[str, Any]) -> Tune | None:
        request_id, request_hash = asked.get("request_id"), asked["request_hash"]
        mine = [tune for tune in self.tunes.values() if tune.tenant_id == tenant_id]
        same_id = next((tune for tune in mine if request_id is not None and tune.request_id == request_id), None)
        if same_id is not None and same_id.request_hash != request_hash:
            raise RequestReused("it came before with another request")
        if same_id is not None:
            return same_id
        same_name = next((tune for tune in mine if tune.name == asked["name"] and not tune.deleted), None)
        if same_name is None:
            return None
        retried = request_id is None and same_name.request_hash == request_hash
        if retried and same_name.created[0] > self.now - REPLAY_WINDOW.total_seconds():
            return same_name
        raise NameTaken("there is one already")

    def find(self, tenant_id: str, tune_id: str) -> Tune:
        """NotFound: none of the tenant's that lives."""
        tune = self.tunes.get(tune_id)
        if tune is None or tune.tenant_id != tenant_id or tune.deleted:
            raise NotFound(f"there is no tune {tune_id}")
        return tune

    def cancel(self, tenant_id: str, tune_id: str) -> Tune:
        """Ends a queued one, asks a leased one's trainer to, leaves a finished one as it is."""
        return self._cancel(self.find(tenant_id, tune_id), "cancel")

    def delete(self, tenant_id: str, tune_id: str) -> Tune:
        """Cancels it where it lives, and hides it."""
        tune = self._cancel(self.find(tenant_id, tune_id), "delete")
        tune.deleted = True
        return tune

    def _cancel(self, tune: Tune, verb: str) -> Tune:
        if tune.state in TERMINAL or tune.cancel:
            return tune
        tune.cancel = True
        if tune.state is TuneState.QUEUED:
            self._move(tune, TuneState.CANCELLED, "CANCELLED")
        else:
            self._tell(tune, tune.state, "CANCEL_REQUESTED")
        return self._wrote(tune, verb)

    # ---- Leases: store/leases.py

    def claim(
        self,
        offer: Offer,
        lease_seconds: float = LEASE,
        *,
        among: Collection[str] | None = None,
        passing: Collection[str] = (),
    ) -> Claim | None:
        """Gives the trainer a tune, and ends on its way what it finds cancelled, poisoned or without pictures.

        `among`: the tunes that it may get, where several claims at once share out the rest. `passing`: ids of tunes and
        tenants whose rows somebody has locked, and which a claim passes over.
        """
        while True:
            fitting = [tune for tune in self._fitting(offer, passing) if among is None or tune.id in among]
            lost = [tune for tune in fitting if self.has_ended(tune, lease_seconds)]
            tune = min(lost, key=_end_of_lease) if lost else self._next(offer, fitting, passing)
            if tune is None:
                return None
            if self._assign(tune, offer.trainer_id, lease_seconds):
                return Claim(LeaseRef(tune.id, tune.epoch, offer.trainer_id), tune, tune.snapshot)

    def _fitting(self, offer: Offer, passing: Collection[str]) -> Iterator[Tune]:
        for tune in self.tunes.values():
            fits = tune.engine in offer.engines and tune.memory_class <= offer.memory_bytes // GIB
            if fits and tune.id not in passing:
                yield tune

    def has_ended(self, tune: Tune, lease_seconds: float = LEASE) -> bool:
        """Whether its lease has, and not merely because the service was away."""
        heard = self.alive_at >= self.now - lease_seconds * SILENCE
        return tune.expires is not None and tune.expires[0] <= self.now and self.grace_until <= self.now and heard

    def _next(self, offer: Offer, fitting: Sequence[Tune], passing: Collection[str]) -> Tune | None:
        """The head of the neediest tenant's queue, or a warm one before it."""
        waiting = [tune for tune in fitting if tune.state is TuneState.QUEUED and tune.tenant_id not in passing]
        owners = [self.tenant(id) for id in {tune.tenant_id for tune in waiting}]
        needs = [
            (running / owner.weight, owner.served, owner.id)
            for owner in owners
            if (running := self.count(owner.id, LEASED)) < owner.running_limit
        ]
        if not needs:
            return None
        _, _, neediest = min(needs)
        queue = sorted((tune for tune in waiting if tune.tenant_id == neediest), key=_place)
        head = queue[0]
        if self.now - head.created[0] >= WARM_WAIT.total_seconds():
            return head
        equals = (tune for tune in queue if tune.priority == head.priority)
        return next((tune for tune in equals if tune.checkpoint in offer.warm_checkpoints), head)

    def _assign(self, tune: Tune, trainer_id: str, lease_seconds: float) -> bool:
        """False: it has been ended instead."""
        crashes = tune.crashes + (tune.state is TuneState.RUNNING)
        if tune.cancel or crashes >= POISON_LIMIT:
            self._end_lost(tune, "claim")
            return False
        if not tune.judged and not tune.ready:
            tune.log.append(Entry(tune.epoch, "verdict", {"reason": "NOT_UPLOADED"}))
            self._move(tune, TuneState.FAILED, "UNREADY_PICTURES")
            self._wrote(tune, "claim")
            return False
        tune.epoch += 1
        if tune.state in LEASED:
            self._tell(tune, TuneState.QUEUED, "LEASE_ENDED")
        else:
            self.tenant(tune.tenant_id).served = self._moment()
        self._move(tune, TuneState.ASSIGNED, "ASSIGNED")
        tune.holder, tune.expires, tune.claimed_at = trainer_id, self._moment(lease_seconds), self.now
        tune.judged, tune.crashes, tune.reported_seq, tune.phase = True, crashes, 0, None
        tune.step = tune.snapshot.step if tune.snapshot else 0
        self._wrote(tune, "claim")
        return True

    def accept(self, lease: LeaseRef) -> bool:
        """RUNNING. False: stale. Safe to repeat."""
        tune = self.is_current(lease)
        if tune is not None and tune.state is TuneState.ASSIGNED:
            tune.attempts += 1
            self._move(tune, TuneState.RUNNING, "STARTED")
            self._wrote(tune, "accept")
        return tune is not None

    def withdraw(self, lease: LeaseRef, reason: str = "REJECTED") -> bool:
        """Back to the queue; costs no attempt. False: stale, or it was accepted."""
        tune = self.is_current(lease)
        if tune is None or tune.state is not TuneState.ASSIGNED:
            return False
        self._end_attempt(tune, "withdraw", reason, counts=False)
        return True

    def is_current(self, lease: LeaseRef) -> Tune | None:
        """The fence: the tune if this attempt may still write; else None."""
        tune = self.tunes.get(lease.tune_id)
        return tune if tune is not None and _holds(lease, tune) and tune.state in LEASED else None

    def renew(self, trainer_id: str, held: Sequence[LeaseRef], lease_seconds: float = LEASE) -> Renewal:
        """A beat: extends what is still the trainer's, also where its time has run out."""
        extended = [ref for ref in held if ref.trainer_id == trainer_id and self.is_current(ref)]
        until = self._moment(lease_seconds)  # of all of them: it is one statement
        for ref in extended:
            self._extend(self.tunes[ref.tune_id], "renew", until)
        return Renewal(
            extended=extended,
            lost=[ref for ref in held if ref not in extended],
            cancelled=[ref for ref in extended if self.tunes[ref.tune_id].cancel],
        )

    def cancelled(self, trainer_ids: Sequence[str]) -> list[str]:
        """Tunes that these trainers hold and that are to be cancelled."""
        held = (tune for tune in self.tunes.values() if tune.state in LEASED and tune.holder in trainer_ids)
        return [tune.id for tune in held if tune.cancel]

    def restate(
        self,
        trainer_id: str,
        held: Sequence[Held],
        lease_seconds: float = LEASE,
        uptime_seconds: float = math.inf,
        session_id: str | None = None,
    ) -> dict[LeaseRef, HeldAction]:
        """A Hello: extends what it restates, and ends every other lease of the trainer. StateForbids: a newer one has
        taken over from the stream that asks.
        """
        newest = self.trainers.get(trainer_id)
        if session_id is not None and (newest is None or newest.hello.session_id != session_id):
            raise StateForbids("a newer stream has taken over")
        stated = {each.lease: each for each in held if each.lease.trainer_id == trainer_id}
        actions = dict.fromkeys((each.lease for each in held), HeldAction.ABORT)
        for tune in sorted(self.tunes.values(), key=lambda each: each.id):
            if tune.holder != trainer_id or tune.state not in LEASED:
                continue
            known = stated.get(LeaseRef(tune.id, tune.epoch, trainer_id))
            if known is None:
                self._end_lost(tune, "restate", blamed=self.now - tune.claimed_at < uptime_seconds)
                continue
            self._extend(tune, "restate", self._moment(lease_seconds))
            actions[known.lease] = HeldAction.SEND_RESULT if known.result_pending else HeldAction.CONTINUE
        return actions

    def reap(self, lease_seconds: float = LEASE, *, passing: Collection[str] = ()) -> int:
        """Shows that the service is alive, and ends expired tunes that are cancelled or poisoned. `passing`: ids of
        tunes whose rows somebody has locked.
        """
        if self.alive_at < self.now - lease_seconds * SILENCE:
            self.grace_until = self.now + lease_seconds
        self.alive_at = self.now
        doomed = [
            tune
            for tune in self.tunes.values()
            if self.has_ended(tune, lease_seconds)
            and tune.id not in passing
            and (tune.cancel or (tune.state is TuneState.RUNNING and tune.crashes >= POISON_LIMIT - 1))
        ]
        for tune in doomed:
            self._end_lost(tune, "reap")
        return len(doomed)

    # ---- Reports: store/reports.py

    def record_progress(
        self, lease: LeaseRef, phase: str | None, step: int, metrics: Sequence[dict[str, Any]] = ()
    ) -> bool:
        """Keeps phase and step, and as one event the metrics that are newer than the epoch's log. False: stale."""
        tune = self.is_current(lease)
        if tune is None:
            return False
        metrics = [each for each in metrics if each["step"] > tune.newest_step]
        if metrics:
            steps = [{**each, "epoch": lease.epoch} for each in metrics]
            tune.log.append(Entry(tune.epoch, "metrics", {"steps": steps}))
        tune.step = max(step, tune.step)
        if phase is not None and tune.state is TuneState.RUNNING:
            tune.phase = phase
        self._wrote(tune, "record_progress")
        return True

    def record_event(self, lease: LeaseRef, report_seq: int, kind: str, body: dict[str, Any]) -> Outcome:
        """Appends to the log."""
        tune = self._reported(lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        tune.log.append(Entry(tune.epoch, kind, body))
        return self._recorded(tune, "record_event", report_seq)

    def record_recipe(self, lease: LeaseRef, report_seq: int, recipe_json: str, sha256: str) -> Outcome:
        """Keeps the first one."""
        tune = self._reported(lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        if tune.recipe is None:
            tune.recipe = recipe_json
            tune.log.append(Entry(tune.epoch, "recipe_resolved", {"sha256": sha256}))
        return self._recorded(tune, "record_recipe", report_seq)

    def record_snapshot(self, lease: LeaseRef, report_seq: int, snapshot: Snapshot) -> tuple[Outcome, str | None]:
        """Keeps it beside the one before it where it is newer than what is kept, and forgives the crashes before it.
        Also returns the key of an object that is not needed any more.
        """
        tune = self._reported(lease, report_seq)
        if isinstance(tune, Outcome):
            return tune, None
        kept = tune.snapshots
        if kept and snapshot.step <= kept[-1].step:
            is_kept = snapshot.object_key in {each.object_key for each in kept}
            return self._recorded(tune, "record_snapshot", report_seq), None if is_kept else snapshot.object_key
        tune.log.append(Entry(tune.epoch, "snapshot", {"step": snapshot.step}))
        tune.snapshots = [*kept[-1:], snapshot]
        tune.crashes, tune.step = 0, max(tune.step, snapshot.step)
        left_over = kept[0].object_key if len(kept) == 2 else None
        return self._recorded(tune, "record_snapshot", report_seq), left_over

    def finish(self, lease: LeaseRef, report_seq: int, result: LoraResult) -> tuple[Outcome, str | None]:
        """SUCCEEDED, and the id of its LoRA; CANCELLED and none where a cancel came first."""
        tune = self._reported(lease, report_seq)
        if tune is Outcome.ALREADY_RECORDED:
            made = self.tunes[lease.tune_id].lora
            return tune, None if made is None else lora_asset_id(lease.tune_id)
        if isinstance(tune, Outcome):
            return tune, None
        tune.reported_seq, tune.step = report_seq, max(tune.step, result.step)
        if tune.cancel:
            self._end_attempt(tune, "finish", "CANCELLED", counts=False)
            return Outcome.RECORDED, None
        tune.lora = result
        self._move(tune, TuneState.SUCCEEDED, "SUCCEEDED")
        self._wrote(tune, "finish")
        return Outcome.RECORDED, lora_asset_id(tune.id)

    def fail(
        self,
        lease: LeaseRef,
        report_seq: int,
        reason: str = "FAILED",
        details: str = "",
        *,
        retryable: bool,
        crashed: bool,
        max_attempts: int = POISON_LIMIT,
    ) -> Outcome:
        """Back to the queue where another attempt may fare better, else FAILED; CANCELLED where that was asked for. A
        snapshot that was refused is gone, and costs no attempt.
        """
        tune = self._reported(lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        tune.reported_seq = report_seq
        refused = reason == SNAPSHOT_REFUSED and bool(tune.snapshots)
        if refused:
            tune.snapshots = tune.snapshots[:-1]
            tune.step = tune.snapshot.step if tune.snapshot else 0
        counts = (crashed or retryable) and not refused
        self._end_attempt(tune, "fail", reason, counts=counts, retryable=retryable, limit=max_attempts)
        return Outcome.RECORDED

    def observe_cancel(self, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
        """The trainer has stopped: CANCELLED; back to the queue where nobody had cancelled it."""
        return self._let_go(lease, report_seq, step, "observe_cancel", "CANCEL_OBSERVED")

    def give_back(self, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
        """The trainer leaves: back to the queue; costs no attempt."""
        return self._let_go(lease, report_seq, step, "give_back", "GIVEN_BACK")

    def _let_go(self, lease: LeaseRef, report_seq: int, step: int, verb: str, reason: str) -> Outcome:
        tune = self._reported(lease, report_seq)
        if isinstance(tune, Outcome):
            return tune
        tune.reported_seq, tune.step = report_seq, max(tune.step, step)
        attempts = tune.attempts - (not tune.cancel and tune.state is TuneState.RUNNING)
        self._end_attempt(tune, verb, reason, counts=False)
        tune.attempts = attempts  # after the event, which bears the number that this attempt had
        return Outcome.RECORDED

    def _reported(self, lease: LeaseRef, report_seq: int) -> Tune | Outcome:
        tune = self.tunes.get(lease.tune_id)
        if tune is None or not _holds(lease, tune):
            return Outcome.STALE
        if report_seq <= tune.reported_seq:
            return Outcome.ALREADY_RECORDED
        return tune if tune.state in LEASED else Outcome.STALE

    def _recorded(self, tune: Tune, verb: str, report_seq: int) -> Outcome:
        tune.reported_seq = report_seq
        self._wrote(tune, verb)
        return Outcome.RECORDED

    # ---- Trainers: store/trainers.py

    def connect(self, hello: Hello) -> Hello | None:
        """The newest Hello takes the row. Returns whom it evicts: the Hello of the stream that lasted until now.
        StateForbids: a newer stream of the same process stands there.
        """
        before = self.trainers.get(hello.trainer_id)
        if before is not None and before.hello.boot_id == hello.boot_id and hello.session_id < before.hello.session_id:
            raise StateForbids("a newer stream has taken over")
        drain_reason = None if before is None else before.drain_reason
        self.trainers[hello.trainer_id] = Trainer(hello, seen_at=self.now, drain_reason=drain_reason)
        evicted = before is not None and before.connected and before.hello.session_id != hello.session_id
        return before.hello if before is not None and evicted else None

    def seen(self, trainer_id: str, session_id: str, free_slots: int) -> bool:
        """A beat. False: a newer stream has taken over."""
        trainer = self.trainers.get(trainer_id)
        if trainer is None or trainer.hello.session_id != session_id:
            return False
        trainer.free_slots, trainer.seen_at, trainer.connected = free_slots, self.now, True
        return True

    def current(self, trainer_id: str) -> Trainer | None:
        """The trainer as it stands."""
        return self.trainers.get(trainer_id)

    def disconnect(self, trainer_id: str, session_id: str) -> None:
        """The stream has ended; nothing where a newer one has taken over. Leases are left as they are."""
        trainer = self.trainers.get(trainer_id)
        if trainer is not None and trainer.hello.session_id == session_id:
            trainer.connected, trainer.free_slots = False, 0

    def want(self, trainer_id: str, drain_reason: str | None) -> None:
        """The operator drains a trainer, or resumes it: drain() and resume()."""
        if (trainer := self.trainers.get(trainer_id)) is not None:
            trainer.drain_reason = drain_reason

    # ---- What every move is made of: store/moves.py

    def _end_lost(self, tune: Tune, verb: str, *, blamed: bool = True) -> None:
        self._end_attempt(tune, verb, "LEASE_ENDED", counts=blamed and tune.state is TuneState.RUNNING)

    def _end_attempt(
        self,
        tune: Tune,
        verb: str,
        reason: str,
        *,
        counts: bool,
        retryable: bool = True,
        limit: int = POISON_LIMIT,
    ) -> None:
        tune.crashes += counts
        if tune.cancel:
            self._move(tune, TuneState.CANCELLED, "CANCELLED")
        elif retryable and not (counts and tune.crashes >= limit):
            self._move(tune, TuneState.QUEUED, reason)
        else:
            self._move(tune, TuneState.FAILED, reason)
        self._wrote(tune, verb)

    def _move(self, tune: Tune, to: TuneState, reason: str) -> None:
        assert may_move(tune.state, to), f"{tune.id} may not go from {tune.state} to {to}"
        tune.state = to
        if to not in LEASED:
            tune.expires, tune.phase = None, None
        self._tell(tune, to, reason)

    def _tell(self, tune: Tune, state: TuneState, reason: str) -> None:
        body = {"status": state.public, "reason": reason, "attempt": tune.attempts}
        tune.log.append(Entry(tune.epoch, "status_changed", body))

    def _extend(self, tune: Tune, verb: str, until: Moment) -> None:
        tune.expires = until
        self._wrote(tune, verb)

    def _wrote(self, tune: Tune, verb: str) -> Tune:
        tune.history.append(Write(self.now, verb, tune.state, tune.epoch, tune.holder, tune.step))
        return tune

    def _moment(self, seconds: float = 0.0) -> Moment:
        self._moments += 1
        return self.now + seconds, self._moments


def _end_of_lease(tune: Tune) -> tuple[Moment, str]:
    assert tune.expires is not None
    return tune.expires, tune.id


def _holds(lease: LeaseRef, tune: Tune) -> bool:
    return (tune.epoch, tune.holder) == (lease.epoch, lease.trainer_id)


def _place(tune: Tune) -> tuple[int, Moment]:
    return -tune.priority, tune.created

"""What is promised, held against everything that happens in a simulation. Asked at each commit and at each word that a
trainer says; knows the truth of all hosts, which nobody in the simulation does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.protocol import Record
from gateway.results import REPORTS
from gateway.status import Refusal
from store.attempts import LeaseRef
from store.reports import Outcome
from store.states import LEASED, TERMINAL, TuneState
from tests.store.model import Claim, Tune
from trainer.supervisor.leases import Lease
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

if TYPE_CHECKING:
    from tests.simulation.world import World


class Broken(AssertionError):
    """A promise was not kept."""


class Witness:
    """Raises Broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reported: dict[LeaseRef, int] = {}  # the newest report that is recorded
        self._lost: set[tuple[str, Lease]] = set()  # what a process knows to be lost
        self._recovered: set[str] = set()  # tunes whose result an earlier process had left
        self._drained: set[str] = set()  # processes whose gateway has last said so

    def told(self, process: str, message: pb.GatewayMessage) -> None:
        """A trainer hears this now. Only what is recorded may be acknowledged, for he deletes it."""
        lost = [message.revoke.lease] if message.HasField("revoke") else list(message.heartbeat_ack.lost)
        lost += [each.lease for each in message.welcome.held if each.action == pb.HELD_ACTION_ABORT]
        if message.HasField("report_ack"):
            ack = message.report_ack
            if ack.outcome == pb.REPORT_OUTCOME_STALE:
                lost.append(ack.lease)
            else:
                known = [
                    seq
                    for lease, seq in self._reported.items()
                    if Lease(lease.tune_id, lease.epoch) == Lease.of(ack.lease)
                ]
                self._hold(max(known, default=0) >= ack.report_seq, f"{process} may forget what is not recorded: {ack}")
        if message.HasField("drain") or message.heartbeat_ack.drained:
            self._drained.add(process)
        elif message.HasField("welcome") or message.HasField("heartbeat_ack"):
            self._drained.discard(process)
        self._lost |= {(process, Lease.of(lease)) for lease in lost}

    def recovered(self, lease: Lease) -> None:
        """A process has found the attempt's last report on the disk. What its predecessor knew of steps is gone."""
        self._recovered.add(lease.tune_id)

    def begun(self, process: str, held: int, slots: int) -> None:
        """A trainer takes a tune."""
        self._hold(held <= slots, f"{process} holds {held} tunes in {slots} slots")
        self._hold(process not in self._drained, f"{process} takes a tune, and knows that it is drained")

    def published(self, trainer: str, process: str, message: pb.TrainerMessage) -> None:
        """A trainer says this now. Its lease must not be anybody else's, nor have ended."""
        arm = str(message.WhichOneof("message"))
        if arm not in REPORTS and arm != "progress":
            return
        lease = Lease.of(getattr(message, arm).lease)
        self._hold((process, lease) not in self._lost, f"{trainer} says {arm} of {lease}, and knows that it is lost")
        tune = self._world.model.tunes[lease.tune_id]
        self._hold(tune.epoch == lease.epoch, f"{trainer} says {arm} of {lease}, which {tune.holder} has taken over")
        ended = tune.state in LEASED and tune.expires_at is not None and tune.expires_at <= self._world.clock.now
        self._hold(not ended, f"{trainer} says {arm} of {lease}, whose lease has ended")

    def claimed(self, claim: Claim) -> None:
        """A trainer is given a tune. Nobody else may think it his, and nobody may have cancelled it."""
        tune = claim.tune
        self._hold(not tune.cancel, f"{tune.id} is cancelled and was given to {tune.holder}")
        for trainer in self._world.trainers:
            if trainer.process is None:
                continue
            leases = trainer.process.end.leases
            at_work = [Lease.of(held.lease) for held in leases.restated() if not held.result_pending]
            both = [each for each in at_work if each.tune_id == tune.id and leases.is_trusted(each, trainer.now())]
            self._hold(both in ([], [Lease(tune.id, tune.epoch)]), f"{trainer.name} still trusts {both}")

    def recorded(self, request: Record, commit: Callable[[], Outcome]) -> Outcome:
        """A report is judged. What counts is the newest epoch's, and each number once, without gaps."""
        lease, tune = request.lease, self._world.model.tunes[request.lease.tune_id]
        newest = (tune.epoch, tune.holder)
        outcome = commit()
        if outcome is Outcome.RECORDED:
            seq = getattr(request.message, request.arm).report_seq
            self._hold(
                (lease.epoch, lease.trainer_id) == newest, f"a report of {lease} was taken, and {newest} holds it"
            )
            last = self._reported.get(lease, 0)
            self._hold(seq == last + 1, f"report {seq} of {lease} was taken after report {last}")
            self._reported[lease] = seq
        return outcome

    def announced(self, lease: LeaseRef, name: str) -> None:
        """A report tells of an object, which must be there."""
        there = (lease.tune_id, lease.epoch, name) in self._world.objects
        self._hold(there, f"{name} of {lease} was reported and never uploaded")

    def ended(self, trainer: str, how: Any) -> None:
        """A gateway has ended a stream. No trainer here breaks a rule. One may be taken for the double of the process
        before it, where that one's Hello was taken up after its death.
        """
        if isinstance(how, Refusal):
            good = how.code.name in ("UNAVAILABLE", "ABORTED", "ALREADY_EXISTS")
            self._hold(good, f"{trainer} was cut off: {how.code.name} {how}")

    def conclude(self) -> None:
        """All faults have ceased long ago: everything has ended, and nothing is left."""
        for tune in self._world.model.tunes.values():
            self._hold(tune.state in TERMINAL, f"{tune.id} is still {tune.state}")
            self._conclude(tune)
        for trainer in self._world.trainers:
            self._hold(trainer.process is not None, f"{trainer.name} is not there")
            assert trainer.process is not None
            self._hold(len(trainer.process.end.leases) == 0, f"{trainer.name} still holds something")
            self._hold(not trainer.disk, f"{trainer.name} still has reports on its disk")
            self._hold(not trainer.process.end.is_drained, f"{trainer.name} is still drained")

    def _conclude(self, tune: Tune) -> None:
        states = [write.state for write in tune.history]
        self._hold(sum(state in TERMINAL for state in states) == 1, f"{tune.id} has ended more than once")
        self._hold(states[-1] in TERMINAL, f"{tune.id} was written after its end")
        epochs = [write.epoch for write in tune.history]
        self._hold(epochs == sorted(epochs), f"{tune.id}'s epochs fall")
        for before, after in zip(tune.history, tune.history[1:], strict=False):
            fell = before.epoch == after.epoch and after.step < before.step
            self._hold(not fell, f"{tune.id}'s steps fall from {before.step} to {after.step}")
        self._hold((tune.state is TuneState.SUCCEEDED) == (tune.lora is not None), f"{tune.id} is {tune.state}")
        self._hold(tune.cancel or tune.state is not TuneState.CANCELLED, f"{tune.id} was cancelled by nobody")
        told = {step["step"] for entry in tune.log if entry.kind == "metrics" for step in entry.body["steps"]}
        gap = set(range(1, tune.step + 1)) - told
        whole = tune.state is TuneState.SUCCEEDED and tune.id not in self._recovered
        self._hold(not (whole and gap), f"{tune.id}'s curve lacks the steps {gap}")
        poisoned = tune.crashes >= 3
        self._hold(poisoned or tune.state is not TuneState.FAILED, f"{tune.id} has failed for no reason")

    def _hold(self, promise: bool, otherwise: str) -> None:
        if not promise:
            raise Broken(otherwise)

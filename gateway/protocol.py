"""The gateway's end of the protocol, for one stream: what each message means, and what is to be asked and said. Pure:
no stream, no database, no clock of its own, so that tests/simulation can run it through faults by seed.

Called by session and recorder, which ask the store what is decided here to be asked, and tell what it has answered.

What the database decides, and the stream only wishes. Who holds a tune, whether a report counts, when a lease ends,
which stream of a trainer is its newest: each is one transaction, and any replica gets the same answer. What goes over a
stream may be lost at any moment together with all that stands here, and no promise hangs on it:

    what is lost                 what makes it good
    Assign                       the trainer's Hello does not name it: ended; or not accepted in time: withdrawn
    Accepted                     the trainer's next beat or Hello names it, and stands for it
    Cancel                       every HeartbeatAck repeats it until the tune has ended
    Drain                        every HeartbeatAck says whether it is wanted, and so ends it too
    Revoke                       the next beat finds the lease lost, and the next report is STALE
    HeartbeatAck                 the next one; three in a row, and the trainer goes to another replica
    a report or its ReportAck    sent again after Welcome: recorded then, or ALREADY_RECORDED
    Progress                     told again after Welcome, from the step on that a HeartbeatAck has last called stored
    a wake-up                    polling
    this gateway                 nothing that it knew was not in the database, or with the trainer

The trainer is named by its token in all that is asked, whatever it says. What it says against the rules, or more of it
than may be under way, ends its stream with a status; what it says of tunes that are not its own finds no row to write.

    Hello ──restate──> Welcome     the answer says for each attempt CONTINUE, SEND_RESULT or ABORT
    a message ──┬─ heartbeat ──accept, renew──> HeartbeatAck {extended, lost, cancelled}, held up by nothing
                ├─ progress ──────────> kept until the next chunk is stored
                └─ in their order, each when the one before is answered:
                     accepted ──accept──> nothing, or Revoke       url_request ──sign────> Urls, or Revoke
                     rejected ──withdraw──> nothing                a report ────record───> ReportAck

    Welcome ──drained, by its row?──> Drain, and no Assign until the row says otherwise

    an attempt    Assign ──sent──> unanswered ──Accepted──> answered ──accept──> running ──its last report──> let go
                                       └─ accept_seconds without an answer: withdraw, Revoke ─────────────────^
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from gateway import assignments
from gateway.breaches import breach, check, evicted
from gateway.holdings import Holdings
from gateway.results import REPORTS, TERMINAL
from gateway.status import Refusal
from store.leases import Held, HeldAction, LeaseRef, Offer, Renewal
from store.reports import Outcome
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)

OUTCOMES = {
    Outcome.RECORDED: pb.REPORT_OUTCOME_RECORDED,
    Outcome.ALREADY_RECORDED: pb.REPORT_OUTCOME_ALREADY_RECORDED,
    Outcome.STALE: pb.REPORT_OUTCOME_STALE,
}


# What the store is to be asked; each comes back with its answer


@dataclass(frozen=True)
class Renew:
    """A beat: accept, then extend. Answer: a Renewal, or None where the database is away."""

    seq: int
    held: Sequence[LeaseRef]
    to_accept: Sequence[LeaseRef] = ()
    """Whose Accepted is still under way or waits: the beat that names them stands for it. What is extended is trusted
    from then on, and must not be withdrawn behind that."""


@dataclass(frozen=True)
class Accept:
    """The tune runs. Answer: whether the lease is still the trainer's."""

    lease: LeaseRef


@dataclass(frozen=True)
class Withdraw:
    """The assignment is given back to the queue. Answer: whether it was."""

    lease: LeaseRef
    reason: str
    details: str = ""
    rejected: bool = False
    """Whether the trainer has said so itself."""


@dataclass(frozen=True)
class Sign:
    """URLs. Answer: pb.Urls, or None where the lease is no longer the trainer's."""

    lease: LeaseRef
    wanted: pb.UrlRequest


@dataclass(frozen=True)
class Record:
    """A report. Answer: its Outcome."""

    lease: LeaseRef
    message: pb.TrainerMessage

    @property
    def arm(self) -> str:
        """Which report it is."""
        return str(self.message.WhichOneof("message"))

    @property
    def ends(self) -> bool:
        """Whether it is its attempt's last."""
        return self.arm in TERMINAL

    @property
    def follows_progress(self) -> bool:
        """Whether progress is to be stored before it. After its last report the store takes no more of an attempt; and
        another one may begin behind a snapshot, so nobody else will tell the steps before it.
        """
        return self.ends or self.arm == "snapshot_ready"


Request: TypeAlias = Renew | Accept | Withdraw | Sign | Record
Answer: TypeAlias = Renewal | bool | pb.Urls | Outcome | None


# What is to be done


@dataclass(frozen=True)
class Say:
    """Send this; what is droppable, only where there is room: a beat repeats it."""

    message: pb.GatewayMessage
    droppable: bool = False


@dataclass(frozen=True)
class Ask:
    """Ask the store at once."""

    request: Request


@dataclass(frozen=True)
class Queue:
    """Ask the store what follows from this message, behind those that came before it."""

    message: pb.TrainerMessage


@dataclass(frozen=True)
class SlotFreed:
    """The trainer may be given a tune."""


@dataclass(frozen=True)
class ProgressDue:
    """There is progress to be stored."""


Effect: TypeAlias = Say | Ask | Queue | SlotFreed | ProgressDue


class GatewayEnd:
    """The protocol as one stream's gateway keeps to it. Times are monotonic seconds.

    Args:
        trainer_id: By its token or certificate.
        hello: What it has said of itself.
        heartbeat_seconds: Between two beats.
    """

    def __init__(self, trainer_id: str, hello: pb.Hello, heartbeat_seconds: float) -> None:
        self.trainer_id = trainer_id
        self.boot_id = hello.boot_id
        self.session_id = hello.session_id
        self.holdings = Holdings()
        self._hello = hello
        self._heartbeat_seconds = heartbeat_seconds
        self._warm = list(hello.warm_checkpoints)
        self._blocked_slots = 0  # slots that the trainer cannot fill, for it said so in its last beat
        self._leaving = False  # for good: the trainer goes, or this gateway does
        self._drain_reason: str | None = None  # the operator's; None: the trainer is to work
        self._not_before = 0.0  # a trainer that has just refused is not asked again at once
        self._starting_until = 0.0  # an engine that has just died takes its time; the next beat says how it stands

    # Hello

    def restated(self) -> list[Held]:
        """What the trainer says that it holds."""
        return [Held(self._lease(each.lease), each.result_pending) for each in self._hello.held]

    def to_accept(self, actions: Mapping[LeaseRef, HeldAction]) -> list[Accept]:
        """The Accepted of an attempt that goes on, or has ended already, may have been lost with the old stream: Hello
        stands for it.
        """
        return [Accept(lease) for lease, action in actions.items() if action is not HeldAction.ABORT]

    def welcome(self, actions: Mapping[LeaseRef, HeldAction], lease_seconds: float) -> pb.GatewayMessage:
        """The first thing that the trainer hears: one verdict for each that it has named, in its order."""
        welcome = pb.Welcome(
            lease=assignments.duration(lease_seconds), heartbeat=assignments.duration(self._heartbeat_seconds)
        )
        for held in self.restated():
            action = actions[held.lease]
            if action is not HeldAction.ABORT:
                self.holdings.start(held.lease)
            welcome.held.add(lease=message_of(held.lease), action=pb.HeldAction.Value(f"HELD_ACTION_{action}"))
        return pb.GatewayMessage(welcome=welcome)

    def look(self, session_id: str, boot_id: str) -> Refusal | None:
        """The trainer's newest stream, by the database. Why this one is to end; None: it is the newest."""
        return None if session_id == self.session_id else evicted(same_process=boot_id == self.boot_id)

    # Dispatch

    @property
    def is_drained(self) -> bool:
        """Whether the operator wants the trainer empty."""
        return self._drain_reason is not None

    def free_slots(self, now: float) -> int:
        """How many tunes it may be given now."""
        if self._leaving or self.is_drained or now < max(self._not_before, self._starting_until):
            return 0
        return max(0, self._hello.slots - len(self.holdings) - self._blocked_slots)

    def offer(self) -> Offer:
        """A free slot, as the store wants to hear of it."""
        return Offer(self.trainer_id, list(self._hello.engines), self._hello.device_memory_bytes, self._warm)

    def assigned(self, lease: LeaseRef) -> None:
        """An Assign is on its way."""
        self.holdings.add(lease)

    def overdue(self, lease: LeaseRef, now: float) -> Withdraw | None:
        """The time to accept an assignment is over, also when its stream is: a trainer that comes back in time accepts
        by its Hello.
        """
        if not self.holdings.is_unanswered(lease):
            return None
        self.refrain(now)
        return Withdraw(lease, "NOT_ACCEPTED")

    def cancelled(self, tune_id: str) -> Sequence[Effect]:
        """The tune is: the trainer hears it at once where it holds it."""
        leases = self.holdings.of(tune_id)
        return [Say(pb.GatewayMessage(cancel=pb.Cancel(lease=message_of(lease))), droppable=True) for lease in leases]

    def drained(self, reason: str | None) -> Sequence[Effect]:
        """What the operator wants of the trainer, by the database: to be empty, and why; None: to work, as the next
        HeartbeatAck tells it.
        """
        if reason == self._drain_reason:
            return []
        self._drain_reason = reason
        if reason is None:
            log.info("A trainer is to work again", action="trainer_resumed", trainer_id=self.trainer_id)
            return [SlotFreed()]
        log.info(f"A trainer is drained: {reason}", action="trainer_drained", trainer_id=self.trainer_id)
        return [Say(pb.GatewayMessage(drain=pb.Drain(reason=reason)), droppable=True)]

    def redirected(self, reason: str) -> Sequence[Effect]:
        """This gateway goes away: the trainer goes to another one, and gets nothing more here."""
        self._leaving = True
        return [Say(pb.GatewayMessage(reconnect=pb.Reconnect(reason=reason)))]

    def refrain(self, now: float) -> None:
        """Offers nothing for one beat: the same tune would come back at once, and be rejected again."""
        self._not_before = now + self._heartbeat_seconds

    # What the trainer says

    def received(self, message: pb.TrainerMessage, now: float) -> Sequence[Effect]:
        """What follows from a message. An arm that this version does not know is ignored.

        Raises:
            Refusal: It breaks a rule: the trainer's build is at fault.
        """
        arm = message.WhichOneof("message")
        if arm is None:
            log.warning("A trainer's message is not known here and is ignored", action="unknown_arm")
            return []
        check(message)
        match arm:
            case "heartbeat":
                return [Ask(self._beat(message.heartbeat))]
            case "progress":
                noted = self.holdings.note_progress(self._lease(message.progress.lease), message.progress)
                return [ProgressDue()] if noted else []
            case "draining":
                log.info(f"A trainer leaves: {message.draining.reason}", action="trainer_draining")
                self._leaving = True
                return []
            case "hello":
                raise breach("Hello is the first message of a stream, and only the first")
            case "accepted":
                self.holdings.note_answer(self._lease(message.accepted.lease))
            case "rejected":
                self.holdings.note_answer(self._lease(message.rejected.lease))
                self.refrain(now)
            case "failed" if message.failed.crashed:
                self._starting_until = now + self._heartbeat_seconds
        return [Queue(message)]

    def request(self, message: pb.TrainerMessage) -> Request:
        """What is to be asked for a queued message, when its turn has come."""
        arm = message.WhichOneof("message")
        assert arm is not None
        lease = self._lease(getattr(message, arm).lease)
        match arm:
            case "accepted":
                return Accept(lease)
            case "rejected":
                rejected = message.rejected
                return Withdraw(lease, rejected.reason or "REJECTED", rejected.details, rejected=True)
            case "url_request":
                return Sign(lease, message.url_request)
        assert arm in REPORTS
        return Record(lease, message)

    def _beat(self, beat: pb.Heartbeat) -> Renew:
        held = [self._lease(each.lease) for each in beat.held]
        self._warm = list(beat.warm_checkpoints)
        self._blocked_slots = max(0, self._hello.slots - len(held) - beat.free_slots)
        if beat.free_slots > 0:
            self._starting_until = 0.0
        return Renew(beat.seq, held, [lease for lease in held if self.holdings.is_waiting(lease)])

    # What the store answers

    def answered(self, request: Request, answer: Answer, now: float) -> Sequence[Effect]:
        """What follows from it."""
        match request:
            case Renew():
                assert answer is None or isinstance(answer, Renewal)
                return self._renewed(request, answer, now)
            case Accept(lease):
                return self._started(lease) if answer else self._revoke(lease, "the lease is no longer yours")
            case Withdraw(lease):
                if request.rejected:
                    return self._let_go(lease)
                return self._revoke(lease, "it was not accepted in time", droppable=True) if answer else []
            case Sign(lease):
                if answer is None:
                    return self._revoke(lease, "the lease is no longer yours")
                assert isinstance(answer, pb.Urls)
                return [Say(pb.GatewayMessage(urls=answer))]
            case Record():
                assert isinstance(answer, Outcome)
                return self._recorded(request, answer)

    def _renewed(self, beat: Renew, renewal: Renewal | None, now: float) -> Sequence[Effect]:
        """While the database is away, the answer extends nothing: the stream stays, and no lease is said to be lost."""
        ack = pb.HeartbeatAck(seq=beat.seq, drained=self.is_drained)
        freed: list[Effect] = []
        if renewal is not None:
            ack.extended.extend(map(message_of, renewal.extended))
            ack.lost.extend(map(message_of, renewal.lost))
            ack.cancelled.extend(map(message_of, renewal.cancelled))
            for lease in beat.to_accept:
                if lease in renewal.extended:
                    self.holdings.start(lease)
            self.holdings.let_go(renewal.lost)
            self.holdings.let_go_of_all_but(beat.held)
            for lease, step in self.holdings.stored(renewal.extended).items():
                ack.stored.add(lease=message_of(lease), step=step)
        if self.free_slots(now) > 0:
            freed = [SlotFreed()]
        return [Say(pb.GatewayMessage(heartbeat_ack=ack)), *freed]

    def _started(self, lease: LeaseRef) -> Sequence[Effect]:
        self.holdings.start(lease)
        return [ProgressDue()]

    def _recorded(self, report: Record, outcome: Outcome) -> Sequence[Effect]:
        seq = getattr(report.message, report.arm).report_seq
        ack = pb.ReportAck(lease=message_of(report.lease), report_seq=seq, outcome=OUTCOMES[outcome])
        said = Say(pb.GatewayMessage(report_ack=ack))
        return [said, *self._let_go(report.lease)] if report.ends or outcome is Outcome.STALE else [said]

    def _revoke(self, lease: LeaseRef, reason: str, *, droppable: bool = False) -> Sequence[Effect]:
        revoke = pb.Revoke(lease=message_of(lease), reason=reason)
        return [*self._let_go(lease), Say(pb.GatewayMessage(revoke=revoke), droppable)]

    def _let_go(self, lease: LeaseRef) -> Sequence[Effect]:
        return [SlotFreed()] if self.holdings.let_go([lease]) else []

    def _lease(self, lease: pb.Lease) -> LeaseRef:
        """Fenced by who the trainer is by its token, whatever it says."""
        return LeaseRef(lease.tune_id, lease.epoch, self.trainer_id)


def message_of(lease: LeaseRef) -> pb.Lease:
    """A lease as the stream names it."""
    return pb.Lease(tune_id=lease.tune_id, epoch=lease.epoch)

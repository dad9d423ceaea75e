"""The trainer's end of the protocol: what each message means, and what is to be said when. Pure: no stream, no disk, no
clock of its own, so that tests/simulation can run it through faults that no real network would bring together.

Called by the workbench, which says what has happened and performs what comes back; leases.py keeps the leases.

What is promised. A report that is on the disk is sent, in order, until a gateway has acknowledged it, whatever dies in
between. Nothing is published for a tune by two trainers that may both think it theirs. A tune that trains goes on
without a gateway, and not one step of it is repeated because one was away.

Why trust. The gateway counts a lease from its own clock and may give the tune to somebody else when it ends; we cannot
see its clock, nor hear it while the network is cut. So we count from when we *sent* the Hello or the beat that it has
answered, which is before it can have counted, and stop a margin early: clocks of two hosts run apart, but not by a
tenth. Past that point we compute but say nothing of the tune, until a beat or a Welcome says that it is ours again.

Why the fence, then. Trust spares work; it proves nothing: a message may lie in the network for longer than any lease.
The epoch proves it. The database takes a write only of the newest epoch, so a report that comes too late is STALE, and
STALE, ABORT, Revoke and "lost" all mean the same: stop, say nothing, delete what was to be said.

    the stream     APART ──opened──> GREETING ──Welcome──> WELCOMED      a fault, a Reconnect, three beats without an
                     ^                  │ 20 s without         │          answer, or a newer stream of ours: back to
                     └──────────────────┴──────────────────────┘          APART, and everything below stays as it is

    an attempt     Assign ──> at work ──its last report is spooled──> told ──acknowledged──> forgotten
                     │           ├─ Cancel ──────> stops: CancelObserved ─┘                      ^
                     │           ├─ we leave ────> stops: LeaseReturned ──┘                      │
                     │           └─ the lease is lost: stops, and no word more ──────────────────┘
                     └─ Rejected: no free slot, unknown engine, draining

    our slots      given ──Drain, or a HeartbeatAck that says so──> drained: what is held goes on, no more is taken
                     ^──── a HeartbeatAck that does not, or a new stream ────┘

    its lease      trusted <──Welcome CONTINUE or SEND_RESULT, a beat's "extended"── silent
                      └────────────────── (sent + lease - margin) has passed ──────────^

What each fault leads to. The stream falls: attempts go on, Hello names all of them to the next gateway, and it is told
again of the steps that the last one has not called stored. We fall:
the next process finds spooled results and names those; what it does not name the gateway ends at once. The engine
falls: a Failed, like any report. The gateway hangs: its silence ends the stream, and the next one answers. It alone has
lost the database: it extends nothing, and after half a lease we try another one, where there is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trainer.supervisor.effects import (
    Begin,
    Close,
    Delete,
    Effect,
    End,
    Ending,
    Forget,
    Greeted,
    Hand,
    Heed,
    Ignore,
    Leave,
    Stored,
    Upload,
)
from trainer.supervisor.leases import Lease, Leases
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

if TYPE_CHECKING:
    from trainer.supervisor.spool import Report

WELCOME_TIMEOUT = 20.0  # seconds
MISSED = 3  # beats without an answer that end a stream
WINDOW = 64  # reports of one attempt that may wait for their acknowledgement
PROGRESS_PERIOD = 0.2  # seconds between two Progress of a tune


@dataclass(frozen=True)
class Ability:
    """What the trainer can do."""

    engines: Sequence[str]
    """That it can run."""
    slots: int
    """Tunes at the same time."""
    ready: bool = True
    """Whether the engine takes work now."""
    warm: Sequence[str] = ()
    """Checkpoints that are resident in it."""
    device_name: str = "cpu"
    """The GPU's name."""
    device_memory_bytes: int = 0
    """That a tune may use."""


class Trainer(Protocol):
    """What the protocol reads of the trainer around it; all of it lies in memory."""

    def ability(self) -> Ability:
        """What can be done now."""

    def waiting(self, lease: Lease) -> Sequence[Report]:
        """Its reports on the disk that are not acknowledged, in order."""

    def progress(self, lease: Lease) -> pb.Progress | None:
        """What is new since the last Progress, and is from now on told; None where nothing is."""


@dataclass
class _Stream:
    """One stream, from its opening on."""

    session_id: str
    opened: float
    hello_sent: float | None = None
    beat_period: float | None = None  # from Welcome on
    next_beat: float = 0.0
    database_from: float = 0.0  # when it last showed that its gateway reaches the database
    said: deque[pb.TrainerMessage] = field(default_factory=deque)  # waits to be sent, before all else
    asked: deque[pb.UrlRequest] = field(default_factory=deque)  # waits to be sent, after reports
    reported: dict[Lease, int] = field(default_factory=dict)  # the newest report_seq sent on this stream
    progress_from: dict[Lease, float] = field(default_factory=dict)  # when the next Progress may be sent
    drained: bool = False  # what its gateway has last said of the operator's wish


class TrainerEnd:
    """The protocol as one trainer process keeps to it. Times are monotonic seconds.

    Args:
        trainer_id: The token's own.
        boot_id: Of this process.
        version: Of the distribution.
        trainer: What is around it.
        gateways: How many there are to choose from.
    """

    def __init__(self, trainer_id: str, boot_id: str, version: str, trainer: Trainer, gateways: int = 1) -> None:
        self.leases = Leases()
        self._trainer_id = trainer_id
        self._boot_id = boot_id
        self._version = version
        self._trainer = trainer
        self._gateways = gateways
        self._stream: _Stream | None = None
        self._endings: dict[Lease, Ending] = {}
        self._uploading: set[tuple[Lease, int]] = set()
        self._leaving = False  # for good

    # The stream

    @property
    def is_welcomed(self) -> bool:
        """Whether there is a stream that has come to its Welcome."""
        return self._stream is not None and self._stream.beat_period is not None

    @property
    def is_drained(self) -> bool:
        """Whether the operator wants this trainer empty, as the gateway has last said on this stream."""
        return self._stream is not None and self._stream.drained

    def opened(self, session_id: str, now: float) -> None:
        """There is a stream, and nothing has been said on it."""
        self._stream = _Stream(session_id, now)

    def lost(self) -> None:
        """The stream is no more."""
        self._stream = None

    def next_message(self, now: float) -> pb.TrainerMessage | None:
        """What to send now; None: nothing yet. Asked for only when the stream can take it: where the gateway is slow,
        Progress collects where it is made, and a report is not sent that was trusted a while ago.
        """
        stream = self._stream
        if stream is None or (stream.beat_period is None and stream.hello_sent is not None):
            return None
        if stream.beat_period is None:
            stream.hello_sent = now
            return pb.TrainerMessage(hello=self._hello(stream.session_id))
        if stream.said:
            return stream.said.popleft()
        if now >= stream.next_beat:
            stream.next_beat = now + stream.beat_period
            return pb.TrainerMessage(heartbeat=self._heartbeat(now))
        if (report := self._next_report(stream, now)) is not None:
            return report
        if stream.asked:
            return pb.TrainerMessage(url_request=stream.asked.popleft())
        return self._next_progress(stream, self.leases.all(), now)

    def wakes_at(self, now: float) -> float | None:
        """When something is to be sent though nothing happens; None: never."""
        stream = self._stream
        if stream is None or stream.beat_period is None:
            return None
        return min([stream.next_beat, *(time for time in stream.progress_from.values() if time > now)])

    def gives_up_at(self, now: float) -> float:
        """When silence ends the stream, unless something is heard before."""
        stream = self._stream
        assert stream is not None
        if stream.beat_period is None:
            return stream.opened + WELCOME_TIMEOUT
        return now - self.leases.silence(now) + MISSED * stream.beat_period

    def look(self, now: float) -> Sequence[Effect]:
        """Time has passed."""
        if self._stream is None or now < self.gives_up_at(now):
            return []
        waited = f"{MISSED} beats without an answer" if self.is_welcomed else f"no Welcome in {WELCOME_TIMEOUT:.0f} s"
        return [Close(waited)]

    def ask(self, request: pb.UrlRequest) -> None:
        """Asks on the stream that there is. Where there is none, or where it falls, ask again after Greeted."""
        if self._stream is not None and self.is_welcomed:
            self._stream.asked.append(request)

    def beat_soon(self) -> None:
        """The gateway should hear at once how many slots are free."""
        if self._stream is not None:
            self._stream.next_beat = 0.0

    # What happens here

    def recover(self, report: Report) -> Sequence[Upload]:
        """An earlier process left this last report of an attempt on the disk."""
        self.leases.recover(report.lease, getattr(report.message, report.arm).step if report.arm != "failed" else 0)
        return self.spooled()

    def spooled(self) -> Sequence[Upload]:
        """Reports have come onto the disk: their objects go first."""
        uploads: list[Upload] = []
        for lease in self.leases.all():
            for report in self._trainer.waiting(lease):
                if report.is_terminal:
                    self.leases.note_result(lease)
                if not report.uploaded and (lease, report.seq) not in self._uploading:
                    self._uploading.add((lease, report.seq))
                    uploads.append(Upload(report))
        return uploads

    def uploaded(self, report: Report) -> None:
        """Its object is where it has to be, or never will be: the gateway finds nothing, and lets another attempt
        follow, where silence would keep the lease for ever.
        """
        report.uploaded = True
        self._uploading.discard((report.lease, report.seq))

    def drain(self) -> Sequence[Effect]:
        """This process is to leave: takes no more, gives everything back."""
        self._leaving = True
        self._say_draining()
        effects = [effect for lease in self.leases.all() for effect in self._end(lease, Ending.RETURNED)]
        return effects if len(self.leases) > 0 else [Leave()]

    # What the gateway says

    def received(self, message: pb.GatewayMessage, now: float) -> Sequence[Effect]:
        """What follows from a message. An arm that this version does not know is ignored."""
        arm = message.WhichOneof("message")
        if not self.is_welcomed and arm != "welcome":
            return [Close("the gateway's first message is no Welcome")]
        match arm:
            case "welcome":
                return self._welcomed(message.welcome, now)
            case "assign":
                return self._assigned(message.assign)
            case "urls":
                return [Hand(message.urls)]
            case "heartbeat_ack":
                return self._beat_acknowledged(message.heartbeat_ack, now)
            case "report_ack":
                return self._report_acknowledged(message.report_ack)
            case "cancel":
                return self._end(Lease.of(message.cancel.lease), Ending.CANCELLED)
            case "revoke":
                return self._abandon(Lease.of(message.revoke.lease), message.revoke.reason)
            case "drain":
                return self._heed(drained=True, why=message.drain.reason)
            case "reconnect":
                return [Close(message.reconnect.reason, redirected=True)]
            case _:
                return [Ignore(arm)]

    def _welcomed(self, welcome: pb.Welcome, now: float) -> Sequence[Effect]:
        stream = self._stream
        assert stream is not None
        if stream.beat_period is not None or stream.hello_sent is None:
            return [Close("the gateway says Welcome where there was no Hello")]
        verdicts = self.leases.welcomed(welcome, stream.hello_sent)
        stream.beat_period = welcome.heartbeat.ToTimedelta().total_seconds()
        stream.next_beat = stream.database_from = now
        if self._leaving:
            self._say_draining()
        effects: list[Effect] = [Greeted(verdicts)]
        for lease, action in verdicts.items():
            if action == pb.HELD_ACTION_ABORT:
                effects += self._abandon(lease, "the gateway said ABORT")
        return effects

    def _assigned(self, assign: pb.Assign) -> Sequence[Effect]:
        """An Assign that we have already taken is accepted again: the first Accepted may have been lost."""
        lease = Lease.of(assign.lease)
        effects: list[Effect] = []
        if lease not in self.leases:
            can = self._trainer.ability()
            refusal = self.leases.refusal(assign, can.engines, can.slots, draining=self._takes_nothing())
            if refusal is not None:
                rejected = pb.Rejected(lease=assign.lease, reason=refusal[0], details=refusal[1])
                self._say(pb.TrainerMessage(rejected=rejected))
                return []
            self.leases.take(lease)
            self.beat_soon()  # nothing is published before it is answered
            effects.append(Begin(assign))
        self._say(pb.TrainerMessage(accepted=pb.Accepted(lease=assign.lease)))
        return effects

    def _beat_acknowledged(self, ack: pb.HeartbeatAck, now: float) -> Sequence[Effect]:
        self.leases.acknowledged(ack)
        effects: list[Effect] = [*self._heed(drained=ack.drained)]
        for lease in map(Lease.of, ack.lost):
            effects += self._abandon(lease, "the gateway counts it as lost")
        for lease in map(Lease.of, ack.cancelled):
            effects += self._end(lease, Ending.CANCELLED)
        effects += [Stored(Lease.of(each.lease), each.step) for each in ack.stored]
        if self._is_cut_off(ack, now):
            effects.append(Close("this gateway has extended no lease for half of its length"))
        return effects

    def _heed(self, *, drained: bool, why: str = "") -> Sequence[Effect]:
        """The operator's wish, as the gateway knows it. It assigns nothing before it has heard of our free slots."""
        assert self._stream is not None
        if drained is self._stream.drained:
            return []
        self._stream.drained = drained
        self.beat_soon()
        return [Heed(drained, why)]

    def _is_cut_off(self, ack: pb.HeartbeatAck, now: float) -> bool:
        """Whether this gateway alone may have lost the database: it answers, and says nothing of any lease. Elsewhere
        there are others that would give our tunes away; where all have lost it, each is asked for half a lease.
        """
        stream = self._stream
        assert stream is not None
        if ack.extended or ack.lost or len(self.leases) == 0:
            stream.database_from = now
        return self._gateways > 1 and now - stream.database_from >= self.leases.length / 2

    def _report_acknowledged(self, ack: pb.ReportAck) -> Sequence[Effect]:
        lease = Lease.of(ack.lease)
        if ack.outcome == pb.REPORT_OUTCOME_STALE:
            return self._abandon(lease, "the gateway called a report stale")
        report = next((each for each in self._trainer.waiting(lease) if each.seq == ack.report_seq), None)
        if report is None or lease not in self.leases:
            return []
        return self._forget(lease, report.arm) if report.is_terminal else [Delete(lease, report.seq)]

    # Attempts

    def _end(self, lease: Lease, ending: Ending, why: str = "") -> Sequence[Effect]:
        """Once: a cancel is repeated with every beat. A lost lease outweighs what was said before."""
        if lease not in self.leases or (lease in self._endings and ending is not Ending.ABANDONED):
            return []
        self._endings[lease] = ending
        return [End(lease, ending, why)]

    def _abandon(self, lease: Lease, why: str) -> Sequence[Effect]:
        """The lease is not ours. The slot frees itself behind it."""
        if lease not in self.leases:
            return []
        return [*self._end(lease, Ending.ABANDONED, why), *self._forget(lease, "abandoned")]

    def _forget(self, lease: Lease, outcome: str) -> Sequence[Effect]:
        self.leases.drop(lease)
        self._endings.pop(lease, None)
        self._uploading = {key for key in self._uploading if key[0] != lease}
        if self._stream is not None:
            self._stream.reported.pop(lease, None)
            self._stream.progress_from.pop(lease, None)
        forget: list[Effect] = [Forget(lease, outcome)]
        return [*forget, Leave()] if self._leaving and len(self.leases) == 0 else forget

    # What we say

    def _hello(self, session_id: str) -> pb.Hello:
        """All that is held and all that can be done."""
        can = self._trainer.ability()
        return pb.Hello(
            trainer_id=self._trainer_id,
            boot_id=self._boot_id,
            session_id=session_id,
            version=self._version,
            engines=can.engines,
            slots=can.slots,
            device_name=can.device_name,
            device_memory_bytes=can.device_memory_bytes,
            warm_checkpoints=can.warm,
            held=self.leases.restated(),
        )

    def _heartbeat(self, now: float) -> pb.Heartbeat:
        """What is held, and how much more could be: nothing while the engine starts, for a tune would only wait here
        instead of going elsewhere.
        """
        can = self._trainer.ability()
        free = can.slots - len(self.leases) if can.ready and not self._takes_nothing() else 0
        return pb.Heartbeat(
            seq=self.leases.beat(now), free_slots=max(0, free), warm_checkpoints=can.warm, held=self.leases.restated()
        )

    def _next_report(self, stream: _Stream, now: float) -> pb.TrainerMessage | None:
        """In the order of their numbers, also what was sent on an older stream. Nothing of an attempt is heard after
        its last report, and another one may go on from its snapshot: so its progress goes before either.
        """
        for report in self._publishable(now):
            if report.seq <= stream.reported.get(report.lease, 0):
                continue
            before = report.is_terminal or report.arm == "snapshot_ready"
            if before and (due := self._next_progress(stream, [report.lease], now, at_once=True)):
                return due
            stream.reported[report.lease] = report.seq
            return report.message
        return None

    def _publishable(self, now: float) -> Iterator[Report]:
        """Every report whose lease is trusted and whose object is uploaded: in order, a window of each lease."""
        for lease in self.leases.all():
            for report in self._trainer.waiting(lease)[:WINDOW]:
                if not report.uploaded or not self.leases.is_trusted(lease, now):
                    break
                yield report

    def _next_progress(
        self, stream: _Stream, leases: Iterable[Lease], now: float, *, at_once: bool = False
    ) -> pb.TrainerMessage | None:
        for lease in leases:
            if not at_once and now < stream.progress_from.get(lease, now):
                continue
            if self.leases.is_trusted(lease, now) and (due := self._trainer.progress(lease)) is not None:
                self.leases.note_step(lease, due.step)
                stream.progress_from[lease] = now + PROGRESS_PERIOD
                return pb.TrainerMessage(progress=due)
        return None

    def _takes_nothing(self) -> bool:
        return self._leaving or self.is_drained

    def _say(self, message: pb.TrainerMessage) -> None:
        if self._stream is not None and self.is_welcomed:
            self._stream.said.append(message)

    def _say_draining(self) -> None:
        self._say(pb.TrainerMessage(draining=pb.Draining(reason="this trainer takes no more work")))

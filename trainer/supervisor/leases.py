"""What the trainer holds, and until when it may publish for it. Pure: no stream, no disk, no clock of its own.

Called by protocol.py, which says what the time is: which Assign is taken, what Hello and Heartbeat restate, how far an
acknowledged beat extends trust.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.trainer.v1 import trainer_service_pb2 as pb

MARGIN = 0.1  # of a lease; by so much earlier than the gateway the trainer counts it as ended


class LeaseLost(Exception):
    """The gateway says that the lease is no longer ours."""


@dataclass(frozen=True, order=True)
class Lease:
    """One attempt at a tune, as a key."""

    tune_id: str
    epoch: int

    @classmethod
    def of(cls, message: pb.Lease) -> Lease:
        """From its message."""
        return cls(message.tune_id, message.epoch)

    def message(self) -> pb.Lease:
        """As its message."""
        return pb.Lease(tune_id=self.tune_id, epoch=self.epoch)

    def __str__(self) -> str:
        return f"{self.tune_id}.{self.epoch}"


@dataclass
class _Held:
    step: int = 0
    result_pending: bool = False
    trusted_until: float = 0.0  # by the supervisor's monotonic clock


class Leases:
    """Every attempt held, from Assign to the acknowledgement of its terminal report. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._held: dict[Lease, _Held] = {}
        self.length = 0.0  # seconds; Welcome says it
        self._beats: dict[int, tuple[float, frozenset[Lease]]] = {}  # of this stream, not yet acknowledged
        self._last_beat = 0

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._held

    def __len__(self) -> int:
        return len(self._held)

    def all(self) -> list[Lease]:
        """Every attempt held."""
        return list(self._held)

    def refusal(
        self, assign: pb.Assign, engines: Iterable[str], slots: int, *, draining: bool
    ) -> tuple[str, str] | None:
        """Why an assignment is not taken (reason, details); None where it is."""
        if draining:
            return "DRAINING", "this trainer takes no more work"
        if assign.engine not in engines:
            return "UNKNOWN_ENGINE", f"{assign.engine} is not among {', '.join(engines)}"
        if len(self._held) >= slots:
            return "NO_FREE_SLOT", f"{len(self._held)} of {slots} slots are taken"
        return None

    def take(self, lease: Lease) -> None:
        """An Assign is accepted. It is not trusted before a beat that names it is acknowledged: how long the Assign has
        been under way nobody here can tell, and it may have been withdrawn meanwhile.
        """
        self._held[lease] = _Held()

    def recover(self, lease: Lease, step: int) -> None:
        """An earlier process of this trainer left a result behind; it is not trusted before Welcome."""
        self._held[lease] = _Held(step=step, result_pending=True)

    def note_step(self, lease: Lease, step: int) -> None:
        """A step was made."""
        if (held := self._held.get(lease)) is not None:
            held.step = max(held.step, step)

    def note_result(self, lease: Lease) -> None:
        """A terminal report is in the spool."""
        if (held := self._held.get(lease)) is not None:
            held.result_pending = True

    def drop(self, lease: Lease) -> None:
        """The attempt has ended, or is no longer ours."""
        self._held.pop(lease, None)

    def restated(self) -> list[pb.HeldAttempt]:
        """All that Hello and Heartbeat must name."""
        return [
            pb.HeldAttempt(lease=lease.message(), step=held.step, result_pending=held.result_pending)
            for lease, held in self._held.items()
        ]

    def welcomed(self, welcome: pb.Welcome, hello_sent: float) -> dict[Lease, pb.HeldAction.ValueType]:
        """What becomes of each attempt that Hello restated. One that Welcome leaves out is lost."""
        self.length = welcome.lease.ToTimedelta().total_seconds()
        self._beats.clear()
        self._last_beat = 0
        said = {Lease.of(verdict.lease): verdict.action for verdict in welcome.held}
        verdicts = {lease: said.get(lease, pb.HELD_ACTION_ABORT) for lease in self._held}
        self._extend((lease for lease, action in verdicts.items() if action != pb.HELD_ACTION_ABORT), hello_sent)
        return verdicts

    def beat(self, now: float) -> int:
        """A Heartbeat is sent now; its number on this stream."""
        self._last_beat += 1
        self._beats[self._last_beat] = now, frozenset(self._held)
        return self._last_beat

    def acknowledged(self, ack: pb.HeartbeatAck) -> None:
        """Extends what the gateway extended, from when the beat was sent."""
        if (beat := self._beats.get(ack.seq)) is None:
            return
        sent, named = beat
        self._beats = {seq: known for seq, known in self._beats.items() if seq > ack.seq}
        self._extend((lease for lease in map(Lease.of, ack.extended) if lease in named), sent)

    def silence(self, now: float) -> float:
        """Seconds since the oldest beat of this stream that is not acknowledged; 0 where there is none."""
        return now - min((sent for sent, _ in self._beats.values()), default=now)

    def is_trusted(self, lease: Lease, now: float) -> bool:
        """Whether something about it may be published."""
        held = self._held.get(lease)
        return held is not None and now < held.trusted_until

    def _extend(self, leases: Iterable[Lease], sent: float) -> None:
        for lease in leases:
            if (held := self._held.get(lease)) is not None:
                held.trusted_until = max(held.trusted_until, sent + self.length * (1 - MARGIN))

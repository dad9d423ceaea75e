"""What one trainer is believed to hold, and the progress of it that is not stored yet. Called by protocol.py; pure.

Belief only: the row in the database is the truth. It bounds what is kept for a trainer, and says which slots are free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.progress import ProgressBuffer
from store.leases import LeaseRef
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


@dataclass
class Attempt:
    """An attempt that the trainer holds."""

    progress: ProgressBuffer = field(default_factory=ProgressBuffer)
    answered: bool = False
    """Whether Accepted or Rejected has come."""
    running: bool = False
    """Whether that it is accepted stands in the database; before, no progress is taken there."""


class Holdings:
    """The attempts of one trainer."""

    def __init__(self) -> None:
        self._attempts: dict[LeaseRef, Attempt] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def of(self, tune_id: str) -> list[LeaseRef]:
        """The attempts at one tune: one, but for a moment."""
        return [lease for lease in self._attempts if lease.tune_id == tune_id]

    def add(self, lease: LeaseRef) -> Attempt:
        """It is assigned."""
        return self._attempts.setdefault(lease, Attempt())

    def start(self, lease: LeaseRef) -> None:
        """It is accepted, and the database knows."""
        attempt = self.add(lease)
        attempt.answered = attempt.running = True

    def note_answer(self, lease: LeaseRef) -> None:
        """Accepted or Rejected has come."""
        if (attempt := self._attempts.get(lease)) is not None:
            attempt.answered = True

    def is_unanswered(self, lease: LeaseRef) -> bool:
        """Whether it is assigned and nothing has come."""
        attempt = self._attempts.get(lease)
        return attempt is not None and not attempt.answered

    def is_waiting(self, lease: LeaseRef) -> bool:
        """Whether it is assigned and does not run yet."""
        attempt = self._attempts.get(lease)
        return attempt is not None and not attempt.running

    def let_go(self, lost: Iterable[LeaseRef]) -> bool:
        """The trainer holds them no more. Returns whether it held one."""
        before = len(self)
        for lease in lost:
            self._attempts.pop(lease, None)
        return len(self) < before

    def let_go_of_all_but(self, held: Iterable[LeaseRef]) -> None:
        """The trainer names these in a beat: what else it had accepted, it has dropped."""
        named = set(held)
        self.let_go([lease for lease, attempt in self._attempts.items() if attempt.running and lease not in named])

    def note_progress(self, lease: LeaseRef, progress: pb.Progress) -> bool:
        """Keeps it for the next chunk. False: of a lease that the trainer does not hold nothing would be stored."""
        if (attempt := self._attempts.get(lease)) is None:
            return False
        attempt.progress.note(progress)
        return True

    def stored(self, leases: Iterable[LeaseRef]) -> dict[LeaseRef, int]:
        """The newest step of each whose metrics this stream's chunks have brought into the database; those without one
        are left out.
        """
        attempts = {lease: self._attempts[lease] for lease in leases if lease in self._attempts}
        return {lease: attempt.progress.stored for lease, attempt in attempts.items() if attempt.progress.stored > 0}

    def due(self) -> dict[LeaseRef, ProgressBuffer]:
        """Progress that may be stored now."""
        return {
            lease: attempt.progress
            for lease, attempt in self._attempts.items()
            if attempt.running and attempt.progress.is_due
        }

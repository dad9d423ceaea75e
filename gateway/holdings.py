"""What one trainer is believed to hold, and the progress of it that is not stored yet. Called by session, recorder.

Belief only: the row in the database is the truth. It bounds what is kept for a trainer, and says which slots are free.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.progress import ProgressBuffer
from store.database import Database
from store.errors import DatabaseAway
from store.leases import LeaseRef
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

PROGRESS_PERIOD = 0.5  # seconds between two chunks of one trainer's progress


@dataclass
class Attempt:
    """An attempt that the trainer holds."""

    progress: ProgressBuffer = field(default_factory=ProgressBuffer)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the session when Accepted or Rejected has come."""
    running: bool = False
    """Set when that it is accepted stands in the database; before, no progress is taken there."""


class Holdings:
    """The attempts of one trainer."""

    def __init__(self, database: Database, slot_freed: Callable[[], None]) -> None:
        self._database = database
        self._slot_freed = slot_freed
        self._attempts: dict[LeaseRef, Attempt] = {}
        self._due = asyncio.Event()
        self._flushing = asyncio.Lock()

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
        attempt.running = True
        attempt.answered.set()
        self._due.set()

    def note_answer(self, lease: LeaseRef) -> None:
        """Accepted or Rejected has come."""
        if (attempt := self._attempts.get(lease)) is not None:
            attempt.answered.set()

    def let_go(self, lost: Iterable[LeaseRef]) -> None:
        """The trainer holds them no more."""
        for lease in lost:
            if self._attempts.pop(lease, None) is not None:
                self._slot_freed()

    def let_go_of_all_but(self, held: Iterable[LeaseRef]) -> None:
        """The trainer names these in a beat: what else it had accepted, it has dropped."""
        named = set(held)
        self.let_go([lease for lease, attempt in self._attempts.items() if attempt.running and lease not in named])

    def note_progress(self, lease: LeaseRef, progress: pb.Progress) -> None:
        """Keeps it for the next chunk. Of a lease that the trainer does not hold nothing would be stored."""
        if (attempt := self._attempts.get(lease)) is not None:
            attempt.progress.note(progress)
            self._due.set()

    async def flush_all(self) -> None:
        """Stores progress, a chunk each period, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            for lease in list(self._attempts):
                with contextlib.suppress(DatabaseAway):  # it is kept, and the newest goes out later
                    await self.flush(lease)
            await asyncio.sleep(PROGRESS_PERIOD)
            if any(attempt.running and attempt.progress.is_due for attempt in self._attempts.values()):
                self._due.set()

    async def flush(self, lease: LeaseRef) -> None:
        """Stores what is due of one attempt."""
        async with self._flushing:
            attempt = self._attempts.get(lease)
            if attempt is not None and attempt.running:
                await attempt.progress.flush(self._database, lease)

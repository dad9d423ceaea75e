"""What a tune's next chunk of progress will say. Filled and flushed by its session.

While the database is away the newest wins, and the loss curve stays whole, only coarser.
"""

from __future__ import annotations

from typing import Any

from store import reports
from store.database import Database
from store.leases import LeaseRef
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

LIMIT = 2000  # steps kept


class ProgressBuffer:
    """One attempt's progress since the last chunk."""

    def __init__(self) -> None:
        self.is_due = False
        self._phase: str | None = None
        self._step = 0
        self._metrics: list[dict[str, Any]] = []

    def note(self, progress: pb.Progress) -> None:
        """Takes up a Progress."""
        if progress.phase in tune_pb2.TunePhase.values() and progress.phase != tune_pb2.TUNE_PHASE_UNSPECIFIED:
            self._phase = tune_pb2.TunePhase.Name(progress.phase).removeprefix("TUNE_PHASE_").lower()
        self._step = max(self._step, progress.step)
        self._metrics += [
            {
                "step": metrics.step,
                "loss": metrics.loss,
                "learning_rate": metrics.learning_rate,
                "steps_per_second": metrics.steps_per_second,
            }
            for metrics in progress.metrics
        ]
        if len(self._metrics) > LIMIT:
            self._metrics = self._metrics[::-1][::2][::-1]  # every other one, the newest among them
        self.is_due = True

    async def flush(self, database: Database, lease: LeaseRef) -> None:
        """Stores what is due. Where that fails, it stays due."""
        if not self.is_due:
            return
        chunk, self._metrics = self._metrics, []
        self.is_due = False
        try:
            await reports.record_progress(database, lease, self._phase, self._step, chunk)
        except BaseException:
            self._metrics = chunk + self._metrics
            self.is_due = True
            raise

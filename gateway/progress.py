"""Progress on its way into the store, in chunks. Filled by protocol.py, flushed by session and recorder.

While the database is away the newest wins, and the loss curve stays whole, only coarser. What is lost with this process
or this stream the trainer tells again: it hears of each step that is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.breaches import breach
from store import leases, reports
from store.database import Database
from store.errors import DatabaseAway
from store.leases import LeaseRef
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

LIMIT = 2000  # steps kept
PERIOD = 0.5  # seconds between two chunks of one trainer's progress


@dataclass(frozen=True)
class Chunk:
    """What is stored at once."""

    phase: str | None
    """TunePhase's lower-case name, where one was told."""
    step: int
    """The newest."""
    metrics: list[dict[str, Any]]
    """Of the steps since the last chunk."""


class ProgressBuffer:
    """One attempt's progress since the last chunk."""

    def __init__(self) -> None:
        self.is_due = False
        self.stored = 0  # newest step whose metrics are in the database
        self._phase: str | None = None
        self._step = 0
        self._told = 0  # newest step with metrics
        self._steps: int | None = None  # in all, by the tune's row; None until the first chunk
        self._metrics: list[dict[str, Any]] = []

    def note(self, progress: pb.Progress) -> None:
        """Takes up a Progress.

        Raises:
            Refusal: Its steps go back.
        """
        for step in [metrics.step for metrics in progress.metrics]:
            if step <= self._told:
                raise breach(f"step {step} comes after step {self._told}")
            self._told = step
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
        self._metrics = bounded(self._metrics)
        self.is_due = True

    def take(self) -> Chunk | None:
        """What is due, from now on stored; None where nothing is."""
        if not self.is_due:
            return None
        chunk = Chunk(self._phase, self._step, self._metrics)
        self._metrics, self.is_due = [], False
        return chunk

    def note_stored(self, chunk: Chunk) -> None:
        """It is in the database."""
        if chunk.metrics:
            self.stored = chunk.metrics[-1]["step"]

    def put_back(self, chunk: Chunk) -> None:
        """It could not be stored: it stays due."""
        self._metrics = bounded(chunk.metrics + self._metrics)
        self.is_due = True

    async def flush(self, database: Database, lease: LeaseRef) -> None:
        """Stores what is due. Where that fails, it stays due.

        Raises:
            Refusal: It has more steps than the tune.
        """
        if not self.is_due:
            return
        if self._steps is None and (tune := await leases.is_current(database, lease)) is not None:
            self._steps = tune.steps
        if self._steps is not None and max(self._step, self._told) > self._steps:
            raise breach(f"step {max(self._step, self._told)} of {self._steps}")
        if (chunk := self.take()) is None:
            return
        try:
            await reports.record_progress(database, lease, chunk.phase, chunk.step, chunk.metrics)
        except BaseException:
            self.put_back(chunk)
            raise
        self.note_stored(chunk)


def bounded(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they are where they are few enough; else at most about half as many, evenly, the newest among them."""
    if len(metrics) <= LIMIT:
        return metrics
    kept, stride = metrics, 1
    while len(kept) > LIMIT // 2:  # by powers of two: what an earlier turn has kept is not thinned by another measure
        stride *= 2
        kept = [each for each in kept if each["step"] % stride == 0]
    return kept if kept and kept[-1] is metrics[-1] else [*kept, metrics[-1]]


class Chunks:
    """Stores one trainer's progress. `due`: the buffers of what may be stored now."""

    def __init__(self, database: Database, due: Callable[[], Mapping[LeaseRef, ProgressBuffer]]) -> None:
        self.stirred = asyncio.Event()  # set by the session when progress is due, cleared by run
        self._database = database
        self._due = due
        self._flushing = asyncio.Lock()

    async def run(self) -> None:
        """Stores a chunk of each attempt each period, until cancelled."""
        while True:
            await self.stirred.wait()
            self.stirred.clear()
            for lease in self._due():
                with contextlib.suppress(DatabaseAway):  # it is kept, and the newest goes out later
                    await self.flush(lease)
            await asyncio.sleep(PERIOD)
            if self._due():
                self.stirred.set()

    async def flush(self, lease: LeaseRef) -> None:
        """Stores what is due of one attempt."""
        async with self._flushing:
            if (progress := self._due().get(lease)) is not None:
                await progress.flush(self._database, lease)

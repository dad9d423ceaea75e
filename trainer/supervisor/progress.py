"""What a tune's next Progress will say. Filled by its attempt, emptied by the session; pure.

    note_steps ──> untold ──take──> told ──stored──> forgotten
                     ^──tell_again───┘ a new stream: the gateway of the old one may have died with it

While no one takes it (no stream, back-pressure) steps collect, and when there are too many only every second one stays,
then every fourth: the newest wins, and the curve stays even over an hour without a gateway.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer import pipe
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

LIMIT = 1000  # steps in one Progress: the protocol's own limit


class ProgressBuffer:
    """The steps of one attempt that no gateway is known to have stored."""

    def __init__(self, lease: pb.Lease, steps: int) -> None:
        self.step = 0
        self._lease = lease
        self._steps = steps
        self._phase = tune_pb2.TUNE_PHASE_UNSPECIFIED
        self._untold: list[pb.StepMetrics] = []
        self._told: list[pb.StepMetrics] = []
        self._changed = False

    def note_phase(self, phase: tune_pb2.TunePhase.ValueType) -> None:
        """The phase is now another."""
        self._phase = phase
        self._changed = True

    def note_steps(self, steps: Iterable[pipe.StepLine]) -> None:
        """Steps were made."""
        for step in steps:
            self.step = max(self.step, step.step)
            self._untold.append(
                pb.StepMetrics(
                    step=step.step,
                    loss=step.loss,
                    learning_rate=step.learning_rate,
                    steps_per_second=step.steps_per_second,
                )
            )
        self._untold = bounded(self._untold)
        self._changed = True

    def take(self) -> pb.Progress | None:
        """The Progress that is due; None where nothing has changed since the last."""
        if not self._changed:
            return None
        progress = pb.Progress(
            lease=self._lease, phase=self._phase, step=self.step, steps=self._steps, metrics=self._untold
        )
        self._told = bounded(self._told + self._untold)
        self._untold = []
        self._changed = False
        return progress

    def stored(self, step: int) -> None:
        """What was told up to this step is in the database."""
        self._told = [metrics for metrics in self._told if metrics.step > step]

    def tell_again(self) -> None:
        """There is a new stream: what is not known to be stored is due once more."""
        self._untold = bounded(self._told + self._untold)
        self._told = []
        self._changed = self._changed or self.step > 0 or self._phase != tune_pb2.TUNE_PHASE_UNSPECIFIED


def bounded(metrics: list[pb.StepMetrics]) -> list[pb.StepMetrics]:
    """As they are where they fit into one Progress; else at most about half of that, evenly, the newest among them."""
    if len(metrics) <= LIMIT:
        return metrics
    kept, stride = metrics, 1
    while len(kept) > LIMIT // 2:  # by powers of two: what an earlier turn has kept is not thinned by another measure
        stride *= 2
        kept = [each for each in kept if each.step % stride == 0]
    return kept if kept and kept[-1] is metrics[-1] else [*kept, metrics[-1]]

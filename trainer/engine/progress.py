"""Gathers steps and tells of them a few times a second. Called by `tune`; the only place that reads a step's tensors,
and so the only one that waits for the device.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trainer.engine.loop import Step
from trainer.failures import Diverged
from trainer.pipe import StepLine

PERIOD = 0.2  # seconds between two reports: five a second
SPAN = 5.0  # seconds over which the speed is told
PATIENCE = 10  # steps thrown away in a row


@dataclass
class Tally:
    """What is counted over the whole tune, whoever trains it: a snapshot carries it on."""

    tail_sum: float = 0.0
    """Losses of the last tenth of the steps, the good ones."""
    tail_count: int = 0
    """How many these are."""
    thrown_away: int = 0
    """Steps that changed nothing."""
    in_a_row: int = 0
    """Of these, since the last good one."""


class Progress:
    """Of one attempt."""

    def __init__(
        self,
        steps: int,
        tell: Callable[[list[StepLine]], None],
        now: Callable[[], float] = time.monotonic,
        counted: Tally | None = None,
    ) -> None:
        """steps: of the whole tune. tell: gets every step once, in order. counted: by the attempts before this one."""
        self._tell = tell
        self._now = now
        self._waiting: list[Step] = []
        self._told_at = now()
        self._read_at = now()  # when the device was waited for last: the next steps began then
        self._pace: deque[tuple[float, int]] = deque([(now(), 0)])  # (when, steps made by then)
        self._made = 0
        self._tail = steps - max(1, steps // 10)
        self._tally = replace(counted or Tally())

    @property
    def tally(self) -> Tally:
        """What has been counted up to the last flush."""
        return replace(self._tally)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps; 0 where none of them was good."""
        return self._tally.tail_sum / self._tally.tail_count if self._tally.tail_count else 0.0

    def add(self, step: Step) -> None:
        """Takes a step, and tells of all that wait when it is time.

        Raises:
            Diverged: ten steps in a row were thrown away.
        """
        self._waiting.append(step)
        if self._now() - self._told_at >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Tells of all that wait. Raises as `add` does."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        read = torch.stack([torch.stack((s.loss, s.thrown_away)) for s in waiting]).tolist()  # waits for the device
        seconds = self._seconds_each(len(waiting))
        self._made += len(waiting)
        speed = self._speed()
        lines = []
        for step, (loss, thrown_away) in zip(waiting, read, strict=True):
            self._count(step.step, loss, bool(thrown_away))
            if not thrown_away and math.isfinite(loss):  # JSON says no other
                lines.append(StepLine(step.step, loss, step.learning_rate, speed, seconds))
        self._told_at = self._now()
        if lines:
            self._tell(lines)
        if (in_a_row := self._tally.in_a_row) >= PATIENCE:
            raise Diverged(f"{in_a_row} steps in a row gave no finite gradient, up to step {waiting[-1].step}")

    def _count(self, step: int, loss: float, thrown_away: bool) -> None:
        tally = self._tally
        if thrown_away:
            tally.thrown_away += 1
            tally.in_a_row += 1
            return
        tally.in_a_row = 0 if tally.in_a_row < PATIENCE else tally.in_a_row
        if step > self._tail:
            tally.tail_sum += loss
            tally.tail_count += 1

    def _seconds_each(self, steps: int) -> float:
        began, self._read_at = self._read_at, self._now()
        return (self._read_at - began) / steps

    def _speed(self) -> float:
        now = self._now()
        self._pace.append((now, self._made))
        while len(self._pace) > 2 and now - self._pace[0][0] > SPAN:
            self._pace.popleft()
        (then, before), (_, made) = self._pace[0], self._pace[-1]
        return (made - before) / (now - then) if now > then else 0.0

"""Learning rate and picture order, as functions of the step. Called by the loop; keeps nothing between two calls but a
plan that it can always make again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.engine.randomness import Dice


def learning_rate(step: int, steps: int, peak: float, shape: str, warmup_ratio: float) -> float:
    """Of the update that step `step` (0 and up) of `steps` makes.

    Rises in a line to the peak, which the last step of the warm-up has, then falls as `shape` says: the step after the
    last would have 0.
    """
    warm_up = round(steps * warmup_ratio)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    p = (step - warm_up) / (steps - warm_up)  # [0, 1)
    return peak * {"cosine": 0.5 + 0.5 * math.cos(math.pi * p), "linear": 1 - p, "constant": 1.0}[shape]


MOST = 64 * 64  # pictures a step: the largest batch, accumulated the most often


class Order:
    """Which pictures each step sees.

    A step's pictures share one bucket, for they go through the model as one tensor. A cycle has as many steps as there
    are pictures, each bucket as many of them as it has pictures; so every picture comes up exactly `batch` times in a
    cycle, whatever the buckets' sizes. Each bucket deals whole shuffles, one after another, and the buckets' steps are
    shuffled among one another. With a batch of one that is the plain shuffled epoch.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], batch: int, dice: Dice) -> None:
        """buckets: the pictures' indices, bucket by bucket. batch: pictures a step, accumulation included."""
        self._buckets = buckets
        self._batch = batch
        self._dice = dice
        self._length = sum(len(bucket) for bucket in buckets)  # steps in a cycle
        self._cycle = -1
        self._plan: list[list[int]] = []

    def pictures(self, step: int) -> list[int]:
        """The `batch` pictures of a step."""
        cycle, place = divmod(step, self._length)
        if cycle != self._cycle:
            self._cycle, self._plan = cycle, self._made(cycle)
        return self._plan[place]

    def _made(self, cycle: int) -> list[list[int]]:
        steps: list[list[int]] = []
        for b, bucket in enumerate(self._buckets):
            deals = (self._dice.shuffled(len(bucket), "order", cycle, b * MOST + i) for i in range(self._batch))
            dealt = [bucket[i] for deal in deals for i in deal]
            steps += [dealt[at : at + self._batch] for at in range(0, len(dealt), self._batch)]
        return [steps[i] for i in self._dice.shuffled(len(steps), "buckets", cycle)]

"""What is told of steps: each once, with how long it took, a few times a second."""

from __future__ import annotations

import torch

from trainer.engine.loop import Step
from trainer.engine.progress import Progress
from trainer.pipe import StepLine


class Clock:
    """Moved by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, loss: float = 0.5, thrown_away: float = 0.0) -> Step:
    return Step(number, torch.tensor(loss), torch.tensor(thrown_away), 1e-4)


def test_steps_that_are_told_together_share_the_time_since_the_last_were_read() -> None:
    clock, told = Clock(), list[StepLine]()
    progress = Progress(100, told.extend, clock)

    clock.now += 0.1
    progress.add(step(1))
    clock.now += 0.3
    progress.add(step(2))
    clock.now += 8.0
    progress.add(step(3))
    progress.flush()

    assert [round(line.seconds, 6) for line in told] == [0.2, 0.2, 8.0]
    assert round(sum(line.seconds for line in told), 6) == 8.4  # all the time there was


def test_slow_step_is_told_as_slow_though_many_were_fast() -> None:
    clock, told = Clock(), list[StepLine]()
    progress = Progress(100, told.extend, clock)
    for number in range(1, 41):
        clock.now += 0.01
        progress.add(step(number))
    progress.flush()

    clock.now += 3.0
    progress.add(step(41))

    assert round(told[-1].seconds, 6) == 3.0
    assert 1 / told[-1].steps_per_second < 0.1  # the mean speed of five seconds says nothing of it


def test_step_that_was_thrown_away_took_its_time_too() -> None:
    clock, told = Clock(), list[StepLine]()
    progress = Progress(100, told.extend, clock)

    clock.now += 0.1
    progress.add(step(1, thrown_away=1.0))
    clock.now += 0.1
    progress.add(step(2))
    progress.flush()

    assert [(line.step, round(line.seconds, 6)) for line in told] == [(2, 0.1)]

"""Learning rate, picture order and draws: functions of the step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from trainer.engine.randomness import Dice, bits
from trainer.engine.schedule import Order, learning_rate


def test_the_rate_rises_to_its_peak_and_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(step, 100, 1.0, "cosine", 0.1) for step in range(100)]

    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001


def test_the_rate_falls_in_a_line_or_not_at_all() -> None:
    assert learning_rate(50, 100, 2.0, "linear", 0.0) == pytest.approx(1.0)
    assert learning_rate(99, 100, 2.0, "constant", 0.0) == 2.0


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_a_single_step_has_the_peak_rate(shape: str) -> None:
    assert learning_rate(0, 1, 0.5, shape, 0.5) == 0.5


def test_a_batch_of_one_is_the_plain_shuffled_epoch() -> None:
    order = Order([[0, 3], [1, 2, 4]], 1, Dice(5))

    epochs = [[order.pictures(epoch * 5 + i)[0] for i in range(5)] for epoch in range(4)]

    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("batch", [2, 3, 4, 16])
def test_every_picture_comes_up_equally_often_and_no_step_mixes_buckets(batch: int) -> None:
    buckets = [[0, 3], [1, 2, 4, 5, 6], [7]]
    order = Order(buckets, batch, Dice(5))

    steps = [order.pictures(step) for step in range(8)]  # one cycle

    assert all(len(step) == batch for step in steps)
    assert all(any(set(step) <= set(bucket) for bucket in buckets) for step in steps)
    assert set(Counter(picture for step in steps for picture in step).values()) == {batch}


def test_the_order_is_a_function_of_the_step() -> None:
    forward = Order([[0, 1, 2], [3, 4]], 2, Dice(9))
    backward = Order([[0, 1, 2], [3, 4]], 2, Dice(9))

    there = [forward.pictures(step) for step in range(20)]
    back = [backward.pictures(step) for step in reversed(range(20))]

    assert there == back[::-1]


def test_seeds_of_draws_are_pinned() -> None:
    # Changing these changes what every running tune would go on with.
    assert bits(0, "noise", 0, 0) == 0x67A89925
    assert bits(4294967295, "timestep", 100000, 63) == 0x482C310B


def test_a_draw_depends_on_seed_purpose_step_and_position_alone() -> None:
    dice = Dice(1)
    together = dice.normal("noise", 3, [0, 1, 2], (4, 2, 2))

    dice.normal("latent", 99, [0], (5,))
    alone = torch.stack([Dice(1).normal("noise", 3, [position], (4, 2, 2))[0] for position in (0, 1, 2)])

    assert torch.equal(together, alone)
    others = [Dice(2).normal("noise", 3, [0], (4, 2, 2)), dice.normal("x", 3, [0], (4, 2, 2))]
    others += [dice.normal("noise", 4, [0], (4, 2, 2)), dice.normal("noise", 3, [1], (4, 2, 2))]
    assert not any(torch.equal(together[:1], other) for other in others)


def test_draws_are_spread_as_they_should_be() -> None:
    dice = Dice(11)

    normal = torch.cat([dice.normal("noise", step, [0], (1000,)).flatten() for step in range(20)])
    uniform = [dice.uniform("caption", step, [0])[0] for step in range(2000)]
    below = [int(dice.below(1000, "timestep", step, [0])) for step in range(2000)]

    assert abs(normal.mean().item()) < 0.03
    assert abs(normal.std().item() - 1) < 0.03
    assert abs(sum(uniform) / 2000 - 0.5) < 0.03
    assert 0 <= min(below) < 20
    assert 980 <= max(below) < 1000

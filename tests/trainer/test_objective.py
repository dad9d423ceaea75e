"""The loss, worked by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from trainer.engine.objective import Diffusion, diffusion, drifts, losses, offset

CPU = torch.device("cpu")
ᾱ = torch.tensor([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9


def test_min_snr_weights_of_epsilon_are_as_worked_by_hand() -> None:
    of = diffusion(ᾱ, predicts_v=False, γ=5.0, device=CPU)

    assert of.steps == 3
    assert of.w.tolist() == pytest.approx([5 / 9, 1.0, 1.0])
    assert of.α.tolist() == pytest.approx([0.9**0.5, 0.5**0.5, 0.1**0.5])
    assert of.σ.tolist() == pytest.approx([0.1**0.5, 0.5**0.5, 0.9**0.5])


def test_min_snr_weights_of_v_are_as_worked_by_hand() -> None:
    of = diffusion(ᾱ, predicts_v=True, γ=5.0, device=CPU)

    assert of.w.tolist() == pytest.approx([5 / 10, 1 / 2, (1 / 9) / (10 / 9)])


@pytest.mark.parametrize("predicts_v", [False, True])
def test_without_gamma_every_timestep_weighs_the_same(predicts_v: bool) -> None:
    assert diffusion(ᾱ, predicts_v, γ=0.0, device=CPU).w.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_zero_terminal_snr_gives_finite_weights() -> None:
    of = diffusion(torch.tensor([0.5, 0.0]), predicts_v=True, γ=5.0, device=CPU)

    assert of.w.tolist() == [0.5, 0.0]


def test_the_loss_is_as_worked_by_hand() -> None:
    # x_t = 0.6 * 2 + 0.8 * 1 = 2.0; the model says half of it, 1.0, and then 1.0 + t.
    of = Diffusion(torch.tensor([0.6, 0.6]), torch.tensor([0.8, 0.8]), torch.tensor([1.0, 0.25]), predicts_v=False)
    x_0, ε = torch.full((2, 4, 2, 2), 2.0), torch.full((2, 4, 2, 2), 1.0)

    got = losses(lambda x_t, t: x_t / 2 + t.view(-1, 1, 1, 1), of, x_0, torch.tensor([0, 1]), ε)

    assert got.tolist() == pytest.approx([0.0, 0.25])


def test_the_loss_of_v_is_as_worked_by_hand() -> None:
    # v = 0.6 * 1 - 0.8 * 2 = -1.0; the model says 0.5: (1.5)^2.
    of = Diffusion(torch.tensor([0.6]), torch.tensor([0.8]), torch.tensor([1.0]), predicts_v=True)
    x_0, ε = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 1.0)

    got = losses(lambda x_t, t: torch.full_like(x_t, 0.5), of, x_0, torch.tensor([0]), ε)

    assert got.tolist() == pytest.approx([2.25])


def test_a_picture_s_loss_does_not_depend_on_its_neighbours() -> None:
    of = diffusion(torch.linspace(0.99, 0.01, 10), predicts_v=False, γ=5.0, device=CPU)
    x_0, ε, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1, 5, 9])

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.tanh()

    together = losses(predict, of, x_0, t, ε)
    alone = [losses(predict, of, x_0[i : i + 1], t[i : i + 1], ε[i : i + 1]) for i in range(3)]

    assert torch.allclose(together, torch.cat(alone))


def test_noise_offset_moves_each_channel_s_mean() -> None:
    ε = torch.zeros(1, 2, 2, 2)

    got = offset(ε, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), strength=0.5)

    assert got.mean(dim=(2, 3)).tolist() == [[0.5, -1.0]]


def test_a_drift_is_the_weighted_distance_from_a_teacher_that_learns_nothing() -> None:
    of = diffusion(ᾱ, predicts_v=False, γ=5.0, device=CPU)
    x_0, ε, t = torch.full((2, 1, 2, 2), 2.0), torch.ones(2, 1, 2, 2), torch.tensor([0, 1])
    pupil, teacher = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)

    def answer(factor: Tensor, x_t: Tensor, _: Tensor) -> Tensor:
        return factor * x_t

    found = drifts(partial(answer, pupil), partial(answer, teacher), of, x_0, t, ε)
    found.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    x_t = [0.9**0.5 * 2 + 0.1**0.5, 0.5**0.5 * 2 + 0.5**0.5]
    assert found.tolist() == pytest.approx([5 / 9 * (2 * x_t[0]) ** 2, (2 * x_t[1]) ** 2])
    assert pupil.grad is not None
    assert pupil.grad.item() != 0
    assert teacher.grad is None

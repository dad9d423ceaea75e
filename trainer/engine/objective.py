"""The loss, in the papers' letters. Called by the loop; pure: draws nothing, holds no model.

x_t = α_t x_0 + σ_t ε (Ho et al. 2020); v = α_t ε − σ_t x_0 (Salimans and Ho 2022); SNR(t) = α_t² / σ_t², and the
min-SNR-γ weight (Hang et al. 2023): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, C, H, W) and t (B,) of int64 to ε or v, shaped like x_t."""


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule of T steps and what is to be predicted in it."""

    α: Tensor
    """(T,), fp32."""
    σ: Tensor
    """(T,), fp32."""
    w: Tensor
    """(T,), fp32: weight of the squared error at each t."""
    predicts_v: bool
    """Otherwise ε."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.w)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t, each (B, 1, 1, 1), of t (B,)."""
        return self.α[t].view(-1, 1, 1, 1), self.σ[t].view(-1, 1, 1, 1)


def diffusion(alphas_cumprod: Tensor, predicts_v: bool, γ: float, device: torch.device) -> Diffusion:
    """The schedule of ᾱ_t (T,); γ = 0 weighs all t alike."""
    ᾱ = alphas_cumprod.double().cpu()
    snr = ᾱ / (1 - ᾱ)
    best = snr.clamp(max=γ) if γ > 0 else snr + 1 if predicts_v else snr
    w = best / (snr + 1) if predicts_v else best / snr.clamp(min=torch.finfo(torch.double).tiny)
    α, σ, w = (x.float().to(device) for x in (ᾱ.sqrt(), (1 - ᾱ).sqrt(), w))
    return Diffusion(α, σ, w, predicts_v)


def losses(predict: Predict, of: Diffusion, x_0: Tensor, t: Tensor, ε: Tensor) -> Tensor:
    """(B,): the weighted squared error of each picture's prediction. x_0, ε: (B, C, H, W); t: (B,) of int64."""
    α, σ = of.at(t)
    target = α * ε - σ * x_0 if of.predicts_v else ε
    return of.w[t] * (predict(α * x_0 + σ * ε, t).float() - target).square().mean(dim=(1, 2, 3))


def drifts(
    predict: Predict,
    teacher: Predict,
    of: Diffusion,
    x_0: Tensor,
    t: Tensor,
    ε: Tensor,
) -> Tensor:
    """(B,): the weighted squared distance of each prediction from the teacher's, which learns nothing by it.

    Prior preservation (Ruiz et al. 2023) with the base's answer for the target, as in learning without forgetting (Li
    and Hoiem 2016): it holds none of the noise that ε itself would, so it says more in fewer steps.
    """
    α, σ = of.at(t)
    x_t = α * x_0 + σ * ε
    with torch.no_grad():
        target = teacher(x_t, t).float()
    return of.w[t] * (predict(x_t, t).float() - target).square().mean(dim=(1, 2, 3))


def offset(ε: Tensor, per_channel: Tensor, strength: float) -> Tensor:
    """Noise with a mean of its own in each channel (Guttenberg 2023). per_channel: (B, C, 1, 1)."""
    return ε + strength * per_channel

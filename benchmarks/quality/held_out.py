"""How well a model can denoise pictures that no tune has seen. Called by `scripts/bench quality`; draws no samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.quality import drawings
from benchmarks.quality.subjects import Subject, shown

Pipeline = Any  # a StableDiffusionPipeline: diffusers leaves it untyped

TIMES = 32  # time steps for each picture, evenly over all of them


@torch.no_grad()
def loss(pipeline: Pipeline, subject: Subject, seed: int = 0) -> float:
    """Mean squared error of what the scheduler's config says is predicted, v or epsilon, over the held-out pictures
    with their captions. The same noise and time steps at every call with this seed."""
    kept = subject.held_out()
    latents = encoded(pipeline, drawings.tensor(shown(kept)))
    words, _ = pipeline.encode_prompt([caption for _, caption in kept], "cpu", 1, False)
    last = pipeline.scheduler.config.num_train_timesteps
    times = ((torch.arange(TIMES) + 0.5) * last / TIMES).long()
    drawn = torch.Generator().manual_seed(seed)
    errors = [_errors(pipeline, x_0, text, times, drawn) for x_0, text in zip(latents, words, strict=True)]
    return float(torch.cat(errors).mean())


def encoded(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to latents in the denoiser's scale, (N, 4, H/4, W/4) with tiny-shapes' VAE."""
    mean: Tensor = pipeline.vae.encode(pictures.float() / 127.5 - 1).latent_dist.mean
    return mean * float(pipeline.vae.config.scaling_factor)


def _errors(pipeline: Pipeline, x_0: Tensor, text: Tensor, t: Tensor, drawn: torch.Generator) -> Tensor:
    """(T,): the error of one picture's prediction at each of the times. x_0: (4, h, w); text: (77, D)."""
    x_0 = x_0.expand(len(t), *x_0.shape)
    ε = torch.randn(x_0.shape, generator=drawn)
    x_t = pipeline.scheduler.add_noise(x_0, ε, t)
    predicts_v = pipeline.scheduler.config.prediction_type == "v_prediction"
    target = pipeline.scheduler.get_velocity(x_0, ε, t) if predicts_v else ε
    predicted: Tensor = pipeline.unet(x_t, t, text.expand(len(t), *text.shape)).sample
    return (predicted - target).square().mean(dim=(1, 2, 3))

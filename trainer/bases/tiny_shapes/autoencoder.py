"""Trains the VAE: 64x64 pictures to 16x16 latents of 4 channels and back. Called by `train`; knows nothing of captions.

Half of its pictures are the world, half clutter, so that it also keeps what a tune brings: hatching, photographs, other
colours. At the end each latent channel is brought to mean 0 and deviation 1 inside the model's own 1x1 convolutions, so
`scaling_factor` is 1 and plain diffusers needs to know nothing of it.
"""

import logging
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from trainer.bases.tiny_shapes import runs, world

Vae = Any  # an AutoencoderKL: diffusers leaves its models untyped

log = logging.getLogger(__name__)

POOL = 12_288  # pictures drawn beforehand, so that the loop never waits for drawing
BATCH = 16
RATE = 2e-3
EDGES = 0.5  # weight of the differences between neighbouring pixels: without it edges come out soft
KL = 1e-3  # weight of the mean divergence per latent value: small, only keeps the latents smooth


def build() -> Vae:
    """An untrained VAE of 0.68 million parameters, its weights set by `open_path`."""
    vae: Vae = AutoencoderKL(  # type: ignore[no-untyped-call]
        sample_size=world.SIDE,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=1.0,
    )
    open_path(vae)
    return vae.to(memory_format=torch.channels_last)


@torch.no_grad()
def open_path(vae: Vae) -> None:
    """Starting weights with which a picture passes nearly unchanged, so that colours are learned in minutes.

    Group norm takes the mean of each group away, and with it the colour of a plain picture: from the usual random start
    the VAE stayed grey for some 500 steps. Here the residual branches start at zero, every other convolution as an
    orthogonal map at its middle, and the posterior narrow, so that its noise hides nothing.
    """
    for part in vae.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            middle = part.kernel_size[0] // 2
            part.weight[:, :, middle, middle] += nn.init.orthogonal_(torch.empty(part.weight.shape[:2]))
    for part in vae.modules():
        if isinstance(part, ResnetBlock2D):
            nn.init.zeros_(part.conv2.weight)
        if isinstance(part, Attention):
            nn.init.zeros_(part.to_out.get_parameter("0.weight"))
    vae.quant_conv.weight[4:] = 0.0
    vae.quant_conv.bias[4:] = -5.0  # log-variance


def train(run: Path, steps: int, seed: int) -> Vae:
    """The trained VAE; from `run/vae.pt` if it is there already, finished or not."""
    torch.manual_seed(seed)
    vae = build()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    done = 0
    if state := runs.load(run / "vae.pt"):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    if done < steps:
        fit(vae, optimizer, pictures(seed), run, done, steps, seed)
    normalise(vae, seed)
    return vae.eval()


def fit(vae: Vae, optimizer: torch.optim.Optimizer, pool: Tensor, run: Path, done: int, steps: int, seed: int) -> None:
    """The loop: steps `done` to `steps`, saving as it goes."""
    losses, started = runs.LossLog(run / "vae-loss.jsonl"), time.monotonic()
    for step in range(done, steps):
        draws = runs.generator(seed, step)
        pixels = varied(pool[torch.randint(len(pool), (BATCH,), generator=draws)], draws)  # (B, 3, 64, 64)
        loss = loss_of(vae, pixels, draws)
        for group in optimizer.param_groups:
            group["lr"] = runs.rate(step, steps, RATE, warm_up=100, hold=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.add(step, loss.item())
        if (step + 1) % runs.SAVE_EVERY == 0 or step + 1 == steps:
            runs.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, run / "vae.pt")
            pace = (step + 1 - done) / (time.monotonic() - started)
            log.info("VAE: step %d of %d, loss %.4f, %.2f steps/s", step + 1, steps, loss.item(), pace)


def loss_of(vae: Vae, pixels: Tensor, draws: torch.Generator) -> Tensor:
    """Absolute and squared error of pixels, absolute error of their differences, a little divergence."""
    latents = vae.encode(pixels).latent_dist
    made = vae.decode(latents.sample(draws)).sample
    error = made - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = latents.kl().mean() / latents.mean[0].numel()  # from a unit Gaussian, a latent value
    loss: Tensor = error.abs().mean() + error.square().mean() + EDGES * edges + KL * divergence
    return loss


def pictures(seed: int) -> Tensor:
    """The pool, (POOL, 3, 64, 64) uint8: world and clutter in turn."""
    rng = Random(seed)  # noqa: S311  # pictures, not secrets
    drawn = [world.clutter(rng) if k % 2 else world.draw(world.random_scene(rng), rng) for k in range(POOL)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


def varied(pixels: Tensor, draws: torch.Generator) -> Tensor:
    """A batch as floats in [-1, 1], half of it mirrored and its colour channels swapped about, the same for all."""
    order = torch.randperm(3, generator=draws) if torch.rand((), generator=draws) < 0.5 else torch.arange(3)
    axes = [axis for axis in (2, 3) if torch.rand((), generator=draws) < 0.5]
    return as_floats(pixels[:, order].flip(axes))


def as_floats(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to floats in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def normalise(vae: Vae, seed: int, count: int = 2048) -> None:
    """Folds each latent channel's mean and deviation over `count` world pictures into the convolutions around it."""
    rng = Random(seed + 1)  # noqa: S311
    drawn = np.stack([world.draw(world.random_scene(rng), rng) for _ in range(count)])
    pixels = as_floats(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in torch.split(pixels, 64)])  # (count, 4, 16, 16)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv  # 1x1 convolutions, 8 to 8 (mean and log-variance) and 4 to 4
    into.weight[:4] /= deviation[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / deviation
    into.bias[4:] -= 2 * deviation.log()
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(dim=1)
    back.weight *= deviation[None, :, None, None]

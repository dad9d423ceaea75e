"""Says whether a 64x64 picture shows what was taught: a small CNN for each subject that can be drawn.

It learns from drawings of the subject and of everything else, and from what the base makes without a tune; never from a
tuned model's pictures, which it will be asked about. Called by `scripts/bench quality`; knows nothing of tunes.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality import drawings, judge
from benchmarks.quality.subjects import Subject, shown

Vae = Any  # an AutoencoderKL: diffusers leaves it untyped

BATCH = 64  # half of it the subject, half all else, each kind as often as any other
STEPS = 600
RATE = 4e-3
KIND = 256  # drawn pictures of each kind
RIGHT = 0.95  # least share of unseen pictures that it must get right

Album = dict[str, Tensor]  # kind -> (N, 3, 64, 64) uint8


class Recogniser(judge.Eyes):
    """(B, 3, 64, 64) floats in [0, 1] to one logit each: above zero, the subject is there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(judge.HIDDEN, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,)."""
        logits: Tensor = self.head(self.weighed(pixels)).squeeze(1)
        return logits

    @torch.no_grad()
    def share(self, pictures: Tensor) -> float:
        """Of (B, 3, 64, 64) uint8, the share that shows the subject."""
        return float((self.eval()(pictures.float() / 255) > 0).float().mean())

    @torch.no_grad()
    def diversity(self, pictures: Tensor) -> float:
        """Mean distance between the traits of two of (B, 3, 64, 64) uint8, B of at least 2."""
        return float(F.pdist(self.eval().traits(pictures.float() / 255)).mean())


def train(subject: Subject, of_base: Tensor, vae: Vae, steps: int = STEPS, seed: int = 0) -> Recogniser:
    """A recogniser of the subject. of_base: pictures by the base, (N, 3, 64, 64) uint8, none of it judged later."""
    torch.manual_seed(seed)
    taught, others = albums(subject, seed, KIND)
    lessons = [both(album, vae) for album in (taught, others | {"base": of_base})]
    wanted = (torch.arange(BATCH) < BATCH // 2).float()
    made = Recogniser()
    optimizer = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        pixels = torch.cat([mixed(album, BATCH // 2) for album in lessons]).float() / 255
        loss = F.binary_cross_entropy_with_logits(made(judge.worn(moved(pixels))), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
        schedule.step()
    return made.eval()


def accuracy(made: Recogniser, subject: Subject, of_base: Tensor, seed: int = 1_000_000) -> dict[str, float]:
    """The share of unseen pictures it gets right: of the subject, of each kind of all else, and both sides' mean."""
    torch.manual_seed(seed)
    taught, others = albums(subject, seed, KIND // 4)
    taught = {**taught, "held_out": drawings.tensor(shown(subject.held_out()))}
    right = {kind: made.share(jittered(pictures)) for kind, pictures in taught.items()}
    wrong = {kind: 1 - made.share(jittered(pictures)) for kind, pictures in (others | {"base": of_base}).items()}
    return {"all": (mean(right) + mean(wrong)) / 2, **right, **wrong}


def albums(subject: Subject, seed: int, count: int) -> tuple[Album, Album]:
    """Drawings of the subject, and of each kind of all else."""
    rng = Random(seed)
    taught = {"taught": drawings.drawn(drawings.TAUGHT[subject.name], count, rng)}
    return taught, {kind: drawings.drawn(draw, count, rng) for kind, draw in drawings.ELSE[subject.name].items()}


@torch.no_grad()
def both(album: Album, vae: Vae, passed: int = 96) -> Album:
    """Every kind with some of its pictures once more as the base's VAE gives them back: generated ones look like that,
    and what a VAE does must tell nothing about what is shown."""
    through = {}
    for kind, pictures in album.items():
        latents = vae.encode(pictures[:passed].float() / 127.5 - 1).latent_dist.mean
        back = ((vae.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        through[kind] = torch.cat([pictures, back])
    return through


def mixed(album: Album, count: int) -> Tensor:
    """`count` pictures, each of a random kind, (N, 3, 64, 64)."""
    kinds = list(album.values())
    chosen = torch.randint(len(kinds), (count,)).tolist()
    return torch.stack([kinds[k][int(torch.randint(len(kinds[k]), (1,)))] for k in chosen])


def jittered(pictures: Tensor) -> Tensor:
    """Uint8 pictures, moved a little, so that even the same drawing is one not seen before."""
    return (moved(pictures.float() / 255) * 255).round().to(torch.uint8)


def moved(pixels: Tensor) -> Tensor:
    """A batch turned by a few degrees, scaled and shifted, as a model places things; edges go on outside."""
    count = len(pixels)
    angle, scale = 0.08 * torch.randn(count), 1 + 0.08 * torch.randn(count)
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    turn = torch.stack(rows, 1) * scale.view(-1, 1, 1)  # (B, 2, 2)
    shift = 0.06 * torch.randn(count, 2, 1)  # of half the picture's side
    grid = F.affine_grid(torch.cat([turn, shift], 2), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def mean(shares: Mapping[str, float]) -> float:
    """Of all kinds alike."""
    return sum(shares.values()) / len(shares)

"""Encodes what a tune sees, once: pictures to latents, captions to what the denoiser is told. Called by `tune`; knows
the cache and the family's seam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trainer.engine.buckets import Crop
from trainer.engine.cache import Cache, Encoded
from trainer.engine.families.base import Family
from trainer.engine.recipe import Recipe


@dataclass(frozen=True)
class Latents:
    """The VAE's posterior of one picture, on the device, in the denoiser's scale."""

    mean: Tensor
    """(C, h, w)."""
    deviation: Tensor
    """(C, h, w)."""


@dataclass(frozen=True)
class Encodings:
    """Everything that a tune sees, on the device, in the recipe's order."""

    latents: list[Latents]
    mirrored: list[Latents]
    """The same of the mirrored pictures; empty where none is ever mirrored."""
    texts: list[Encoded]
    empty: Encoded
    """Of the empty caption."""
    crops: list[Crop]

    @property
    def buckets(self) -> list[list[int]]:
        """The pictures of each size, by their indices; sizes in ascending order."""
        sizes = sorted({crop.bucket for crop in self.crops})
        return [[i for i, crop in enumerate(self.crops) if crop.bucket == size] for size in sizes]


def encode(
    base: Family, recipe: Recipe, crops: list[Path], captions: list[str], cache: Cache, pause: Callable[[], None]
) -> Encodings:
    """crops: files of raw RGB, one a picture. pause is called between two pictures, and may raise to end the tune."""
    plain: list[Latents] = []
    mirrored: list[Latents] = []
    for picture, path in zip(recipe.pictures, crops, strict=True):
        pause()
        for flip, into in ((False, plain), (True, mirrored)):
            if flip and not recipe.flag("random_flip"):
                continue
            key = ("picture", picture.sha256, picture.crop, flip, *_made_by(recipe), "fp32")
            made = cache.get(key, partial(_encoded, base, path, picture.crop, flip))
            into.append(_latents(made, base.device))
    texts = list(_texts(base, recipe, captions, cache))
    crops_seen = [picture.crop for picture in recipe.pictures]
    return Encodings(plain, mirrored, texts[:-1], texts[-1], crops_seen)


def _texts(base: Family, recipe: Recipe, captions: list[str], cache: Cache) -> Iterator[Encoded]:
    """Of each caption, and last of the empty one. Equal captions share their tensors."""
    moved: dict[str, Encoded] = {}
    for caption in [*captions, ""]:
        if caption not in moved:
            key = ("text", caption, *_made_by(recipe), base.precision)
            made = cache.get(key, partial(base.encode_text, caption))
            moved[caption] = {name: tensor.to(base.device) for name, tensor in made.items()}
        yield moved[caption]


def _encoded(base: Family, path: Path, crop: Crop, flip: bool) -> Encoded:
    return base.encode_picture(_pixels(path, crop, flip))


def _made_by(recipe: Recipe) -> tuple[str, str, bool, int]:
    # The last two decide about the last bits: what a tune that does not care left must not reach one that does.
    return recipe.checkpoint, recipe.revision, recipe.flag("deterministic"), recipe.environment.threads


def _latents(made: Encoded, device: torch.device) -> Latents:
    return Latents(made["mean"].to(device), (0.5 * made["logvar"]).exp().to(device))


def _pixels(path: Path, crop: Crop, flip: bool) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(1, crop.height, crop.width, 3)
    pixels = raw.permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.flip(-1) if flip else pixels

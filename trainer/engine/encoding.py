"""Encodes what a tune sees, once: pictures to latents, captions to what the denoiser is told. Called by `tune`; knows
the cache and the family's seam.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
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
            key = ("picture", picture.sha256, picture.crop, flip)
            into.append(latents(base, recipe, key, partial(_pixels, path, picture.crop, flip), cache))
    said = list(texts(base, recipe, captions, cache))
    crops_seen = [picture.crop for picture in recipe.pictures]
    return Encodings(plain, mirrored, said[:-1], said[-1], crops_seen)


def texts(base: Family, recipe: Recipe, captions: list[str], cache: Cache) -> Iterator[Encoded]:
    """Of each caption, and last of the empty one. Equal captions share their tensors."""
    moved: dict[str, Encoded] = {}
    for caption in [*captions, ""]:
        if caption not in moved:
            key = ("text", caption, *_made_by(recipe), base.precision)
            made = cache.get(key, partial(base.encode_text, caption))
            moved[caption] = {name: tensor.to(base.device) for name, tensor in made.items()}
        yield moved[caption]


def latents(
    base: Family, recipe: Recipe, key: tuple[Hashable, ...], pixels: Callable[[], Tensor], cache: Cache
) -> Latents:
    """Of one picture. key: its name in the cache; pixels: reads it, (1, 3, H, W) in [-1, 1], where it is not there."""
    made = cache.get((*key, *_made_by(recipe), "fp32"), lambda: base.encode_picture(pixels()))
    return Latents(made["mean"].to(base.device), (0.5 * made["logvar"]).exp().to(base.device))


def _made_by(recipe: Recipe) -> tuple[str, str, bool, int]:
    # The last two decide about the last bits: what a tune that does not care left must not reach one that does.
    return recipe.checkpoint, recipe.revision, recipe.flag("deterministic"), recipe.environment.threads


def _pixels(path: Path, crop: Crop, flip: bool) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(1, crop.height, crop.width, 3)
    pixels = raw.permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.flip(-1) if flip else pixels

"""What a tune should not make the base forget: prior pictures (Ruiz et al. 2023), encoded as lessons want them. Called
by `tune`; knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.engine import captions
from trainer.engine.buckets import Crop
from trainer.engine.cache import Cache
from trainer.engine.encoding import Encodings, latents, texts
from trainer.engine.families.base import Family, PriorPicture
from trainer.engine.recipe import Recipe
from trainer.failures import CheckpointUnreadable


def of_base(
    base: Family, recipe: Recipe, pictures: Sequence[PriorPicture], cache: Cache, pause: Callable[[], None]
) -> Encodings:
    """The pictures that the base brings. pause: as `encoding.encode` has it.

    Raises:
        CheckpointUnreadable: one of them is no picture, or not of the native size.
    """
    side = recipe.native_size
    encoded = []
    for number, picture in enumerate(pictures):
        pause()
        read = partial(_pixels, picture.path, side)
        encoded.append(latents(base, recipe, ("prior", number), read, cache))  # the checkpoint's digest covers it
    said = list(texts(base, recipe, [picture.caption for picture in pictures], cache))
    crop = Crop(side, side, side, side, 0, 0, side, side)
    return Encodings(encoded, [], said[:-1], said[-1], [crop] * len(encoded))


def of_tune(base: Family, recipe: Recipe, seen: Encodings, said: Sequence[str], cache: Cache) -> Encodings:
    """The tune's own pictures, the trigger word taken out of their captions: for a base that brings none."""
    plain = [captions.plain(caption, recipe.trigger_word) for caption in said]
    return replace(seen, texts=list(texts(base, recipe, plain, cache))[:-1])


def _pixels(path: Path, side: int) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except OSError as exc:
        raise CheckpointUnreadable(f"the checkpoint's prior/{path.name} cannot be read: {exc}") from exc
    if pixels.shape != (side, side, 3):
        height, width, _ = pixels.shape
        raise CheckpointUnreadable(
            f"the checkpoint's prior/{path.name} is {width}x{height} pixels; {side}x{side} was wanted"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1

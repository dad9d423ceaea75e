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

# Share of the tune's own among the prior pictures, where the base brings others. Held to the plain caption, a tune
# learns that its trigger word alone calls up what it teaches: a style would show in what is asked without it, too.
OWN = 1 / 4

# Share of the prior pictures' captions that are dropped, more than one would of a tune's own: guidance multiplies what
# a LoRA changes about the empty caption, so that is what the base must keep above all.
CAPTION_DROPOUT = 0.2


def encodings(
    base: Family,
    recipe: Recipe,
    brought: Sequence[PriorPicture],
    seen: Encodings,
    said: Sequence[str],
    cache: Cache,
    pause: Callable[[], None],
) -> Encodings:
    """The pictures that the base brings, and the tune's own with the trigger word taken out of their captions; these
    alone where the base brings none. pause: as `encoding.encode` has it.

    Raises:
        CheckpointUnreadable: one of the base's is no picture, or not of the native size.
    """
    own = _of_tune(base, recipe, seen, said, cache)
    if not brought:
        return own
    known = _of_base(base, recipe, brought, cache, pause)
    share = OWN / (1 - OWN)
    times = max(1, round(len(brought) * share / len(said)))
    others = max(1, round(len(said) / share / len(brought)))  # a tune may have more pictures than the base brings
    return Encodings(
        others * known.latents + times * own.latents,
        [],
        others * known.texts + times * own.texts,
        known.empty,
        others * known.crops + times * own.crops,
    )


def _of_base(
    base: Family, recipe: Recipe, pictures: Sequence[PriorPicture], cache: Cache, pause: Callable[[], None]
) -> Encodings:
    side = recipe.native_size
    encoded = []
    for number, picture in enumerate(pictures):
        pause()
        read = partial(_pixels, picture.path, side)
        encoded.append(latents(base, recipe, ("prior", number), read, cache))  # the checkpoint's digest covers it
    said = list(texts(base, recipe, [picture.caption for picture in pictures], cache))
    crop = Crop(side, side, side, side, 0, 0, side, side)
    return Encodings(encoded, [], said[:-1], said[-1], [crop] * len(encoded))


def _of_tune(base: Family, recipe: Recipe, seen: Encodings, said: Sequence[str], cache: Cache) -> Encodings:
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

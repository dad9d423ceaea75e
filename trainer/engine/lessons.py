"""What each step sees: its pictures with noise, timesteps, dropped captions and flips. Called by the loop; a pure
function of the step, but for what is encoded.

A draw is named by its place in the whole step, not in a pass: a step cut into more and smaller passes, when memory
runs out, sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.engine import objective
from trainer.engine.buckets import Crop
from trainer.engine.cache import Encoded
from trainer.engine.encoding import Encodings, Latents
from trainer.engine.randomness import Dice
from trainer.engine.recipe import Recipe
from trainer.engine.schedule import Order


@dataclass(frozen=True)
class Lesson:
    """One forward and backward pass over b pictures, on the device."""

    x_0: Tensor
    """(b, C, h, w)."""
    ε: Tensor
    """(b, C, h, w)."""
    t: Tensor
    """(b,) of int64."""
    text: Encoded
    """Each tensor (b, ...)."""
    crops: list[Crop]
    """Of the b pictures."""
    masks: int
    """Seeds the LoRA's dropout, whose masks are drawn on the device."""


class Lessons:
    """All lessons of one tune on some pictures."""

    def __init__(
        self,
        encodings: Encodings,
        recipe: Recipe,
        timesteps: int,
        device: torch.device,
        dropout: float,
        course: str = "",
    ) -> None:
        """dropout: share of captions that are dropped. course: the draws' own, where a tune has several; see Dice."""
        self._seen = encodings
        self._dice = Dice(recipe.seed, course)
        self._order = Order(encodings.buckets, recipe.batch, Dice(recipe.seed, course))
        self._timesteps = timesteps
        self._device = device
        self._batch = range(recipe.batch)
        self._dropout = dropout
        self._offset = recipe.number("noise_offset")

    def at(self, step: int, size: int) -> Iterator[Lesson]:
        """The passes of a step (0 and up), `size` pictures each."""
        pictures = self._order.pictures(step)
        latents, texts = self._latents(step, pictures), self._texts(step, pictures)
        shape = latents[0].mean.shape
        # Drawn for the whole step on the CPU, then moved at once; pinned, so that the move waits for nothing.
        z, ε, t = (self._moved(x) for x in self._drawn(step, shape))
        for number, at in enumerate(range(0, len(pictures), size)):
            now = slice(at, at + size)
            mean, deviation = (torch.stack([getattr(x, part) for x in latents[now]]) for part in ("mean", "deviation"))
            text = {name: torch.stack([said[name] for said in texts[now]]) for name in texts[0]}
            crops = [self._seen.crops[i] for i in pictures[now]]
            masks = self._dice.bits("dropout", step, number)
            yield Lesson(mean + deviation * z[now], ε[now], t[now], text, crops, masks)

    def _drawn(self, step: int, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        z = self._dice.normal("latent", step, self._batch, shape)
        ε = self._dice.normal("noise", step, self._batch, shape)
        if self._offset > 0:
            per_channel = self._dice.normal("offset", step, self._batch, (shape[0], 1, 1))
            ε = objective.offset(ε, per_channel, self._offset)
        return z, ε, self._dice.below(self._timesteps, "timestep", step, self._batch)

    def _latents(self, step: int, pictures: list[int]) -> list[Latents]:
        if not self._seen.mirrored:
            return [self._seen.latents[i] for i in pictures]
        heads = self._dice.uniform("flip", step, self._batch)
        return [
            (self._seen.mirrored if u < 0.5 else self._seen.latents)[i] for i, u in zip(pictures, heads, strict=True)
        ]

    def _texts(self, step: int, pictures: list[int]) -> list[Encoded]:
        if self._dropout == 0:
            return [self._seen.texts[i] for i in pictures]
        heads = self._dice.uniform("caption", step, self._batch)
        dropped = (u < self._dropout for u in heads)
        return [self._seen.empty if drop else self._seen.texts[i] for i, drop in zip(pictures, dropped, strict=True)]

    def _moved(self, drawn: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return drawn
        return drawn.pin_memory().to(self._device, non_blocking=True)

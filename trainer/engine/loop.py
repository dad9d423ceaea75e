"""The training loop: yields steps, does no I/O, waits for no device. Called by `tune`, which may stop taking steps at
any one, and begin at any one that it has the state of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainer.engine.families.base import Family
from trainer.engine.graphs import Pass, Recorder
from trainer.engine.lessons import Lesson, Lessons
from trainer.engine.lora import Adapter
from trainer.engine.objective import Diffusion, Predict, drifts, losses
from trainer.engine.recipe import Recipe
from trainer.engine.schedule import learning_rate


@dataclass(frozen=True)
class Step:
    """One optimizer step. The tensors lie on the device: reading one waits for it."""

    step: int
    """1 and up."""
    loss: Tensor
    """0-d: weighted, mean over the step's own pictures: what the prior ones say is left out."""
    thrown_away: Tensor
    """0-d: 1 where the gradients were not finite and nothing was changed, else 0."""
    learning_rate: float


@dataclass
class Pace:
    """How a step is cut into passes. Eased when memory runs out: more time for less memory, and the same step."""

    batch_size: int
    """Pictures in one pass."""
    checkpointing: bool
    """Whether activations are computed again rather than kept."""

    def ease(self) -> str | None:
        """Takes the next rung down and says which; None where there is none left."""
        if not self.checkpointing:
            self.checkpointing = True
            return "activations are now computed again rather than kept"
        if self.batch_size > 1:
            self.batch_size = (self.batch_size + 1) // 2
            return f"a step is now made in passes of {self.batch_size}"
        return None


@dataclass(frozen=True)
class Course:
    """What is learned from."""

    lessons: Lessons
    """The tune's own."""
    prior: Lessons | None = None
    """Those in which the LoRA should change nothing, of as many pictures; none where their weight is 0."""


def train(
    base: Family, course: Course, diffusion: Diffusion, adapter: Adapter, recipe: Recipe, pace: Pace, first: int = 0
) -> Iterator[Step]:
    """Steps first + 1 to recipe.steps. Given the state after step `first`, they are those of an undisturbed run."""
    peak, shape, warmup = recipe.number("learning_rate"), recipe.word("schedule"), recipe.number("warmup_ratio")
    learn, hold = _passes(base, diffusion, adapter, recipe)
    # Dropout seeds its masks anew for each lesson, and checkpointing looks at the generators: neither can be recorded.
    if base.device.type == "cuda" and not (recipe.number("lora_dropout") or pace.checkpointing or base.heeds_crops):
        recorder = Recorder()
        learn, hold = recorder.played_back(learn), recorder.played_back(hold)
    for step in range(first, recipe.steps):
        adapter.zero_gradients()
        loss = torch.zeros((), device=base.device)
        for lesson in course.lessons.at(step, pace.batch_size):
            loss += learn(lesson)
        for lesson in course.prior.at(step, pace.batch_size) if course.prior else ():
            hold(lesson)
        rate = learning_rate(step, recipe.steps, peak, shape, warmup)
        yield Step(step + 1, loss, adapter.update(rate), rate)


def _passes(base: Family, diffusion: Diffusion, adapter: Adapter, recipe: Recipe) -> tuple[Pass, Pass]:
    """Of the tune's own lessons, and of the prior ones."""
    dropout, weight = recipe.number("lora_dropout"), recipe.number("prior_preservation_weight")
    # Half-precision weights meet the LoRA's fp32 ones.
    mixed = torch.autocast(base.device.type, torch.bfloat16) if recipe.word("precision") == "bf16" else nullcontext()

    def taken_back(lesson: Lesson, scale: float, measure: Callable[[Predict], Tensor]) -> Tensor:
        if dropout > 0:
            torch.manual_seed(lesson.masks)
        with mixed:
            each = measure(partial(base.predict, text=lesson.text, crops=lesson.crops))
        loss = scale * each.sum() / recipe.batch
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()

    def learn(lesson: Lesson) -> Tensor:
        return taken_back(lesson, 1.0, lambda predict: losses(predict, diffusion, lesson.x_0, lesson.t, lesson.ε))

    def hold(lesson: Lesson) -> Tensor:
        def measure(predict: Predict) -> Tensor:
            teacher = partial(_without, adapter, predict)
            return drifts(predict, teacher, diffusion, lesson.x_0, lesson.t, lesson.ε)

        return taken_back(lesson, weight, measure)

    return learn, hold


def _without(adapter: Adapter, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
    with adapter.off():
        return predict(x_t, t)

"""A tune's steps, from the first or from a snapshot to the last. Called by `tune`; leaves what a step is to the loop.

train() ── Step ──> progress ──> told a few times a second
   │ memory runs out: eased, and the same step again
   └─ told to stop, or a snapshot is due ──> keeper
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from trainer.engine import objective
from trainer.engine.families.base import Family
from trainer.engine.loop import Course, Pace, train
from trainer.engine.lora import Adapter
from trainer.engine.orders import Interrupted, Orders
from trainer.engine.progress import Progress
from trainer.engine.recipe import Recipe, canonical, digest
from trainer.engine.snapshot import Keeper, Snapshot


class Training:
    """Of one attempt."""

    def __init__(self, base: Family, course: Course, adapter: Adapter, recipe: Recipe) -> None:
        self.step = 0
        """Steps done."""
        self._base = base
        self._course = course
        self._adapter = adapter
        self._recipe = recipe
        gamma = recipe.number("min_snr_gamma")
        self._diffusion = objective.diffusion(base.alphas_cumprod, base.predicts_v, gamma, base.device)
        self._pace = Pace(recipe.whole("batch_size"), recipe.flag("gradient_checkpointing"))

    def resume(self, snapshot: Snapshot) -> None:
        """Goes on behind the snapshot's step.

        Raises:
            SnapshotRefused: it does not fit.
        """
        self._adapter.restore(snapshot.tensors)
        self.step, self._pace = snapshot.step, snapshot.pace

    def run(self, progress: Progress, keeper: Keeper, orders: Orders, warn: Callable[[str, str], None]) -> None:
        """To the last step.

        Raises:
            Interrupted: it was told to stop, and has left a snapshot where one was wanted.
            Diverged: see Progress.
        """
        orders.on_upload(keeper.uploaded)
        try:
            while self.step < self._recipe.steps:
                self._base.set_checkpointing(self._pace.checkpointing)
                try:
                    self._train(progress, keeper, orders)
                except torch.OutOfMemoryError:
                    # The step that failed has changed nothing: it is made again, with the same draws.
                    if (told := self._pace.ease()) is None:
                        raise
                    warn("OUT_OF_MEMORY", f"step {self.step + 1} did not fit the device's memory: {told}")
            progress.flush()
        except Interrupted:
            if orders.wants_snapshot:
                self._keep(progress, keeper)
            raise
        finally:
            keeper.settle()
            orders.off_upload()

    def _train(self, progress: Progress, keeper: Keeper, orders: Orders) -> None:
        given = self._base, self._course, self._diffusion, self._adapter, self._recipe, self._pace, self.step
        orders.heed()
        for step in train(*given):
            self.step = step.step
            progress.add(step)
            if keeper.is_due() and self.step < self._recipe.steps:
                self._keep(progress, keeper)
            orders.heed()

    def _keep(self, progress: Progress, keeper: Keeper) -> None:
        if self.step == 0:
            return
        progress.flush()  # the tally has to know of every step
        sha256, tensors = digest(canonical(self._recipe)), self._adapter.snapshot()
        keeper.keep(Snapshot(self.step, sha256, replace(self._pace), progress.tally, tensors))

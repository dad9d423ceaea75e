"""One tune, from its Start to its LoRA file: judge, resolve, load, encode, train, save. Called by `child`; tells all
that happens through `report`, and knows nothing of the pipe that carries it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.engine import captions, defaults, hardware, kohya, prior, recipe, snapshot
from trainer.engine.buckets import rules
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.encoding import Encodings, encode
from trainer.engine.families import family
from trainer.engine.families.base import Family, Shape
from trainer.engine.judging import Kept, judge
from trainer.engine.lessons import Lessons
from trainer.engine.loop import Course
from trainer.engine.lora import Adapter
from trainer.engine.orders import Interrupted, Orders
from trainer.engine.progress import Progress
from trainer.engine.recipe import Picture, Recipe
from trainer.engine.residence import Residence
from trainer.engine.snapshot import Keeper, Snapshot
from trainer.engine.training import Training
from trainer.pipe import (
    PhaseChanged,
    Resident,
    Resolved,
    Saved,
    Snapshotted,
    Start,
    StepLine,
    Stepped,
    Stopped,
    ToSupervisor,
    Warned,
)

Report = Callable[[ToSupervisor], None]


@dataclass(frozen=True)
class Workshop:
    """What outlives a tune."""

    device: torch.device
    threads: int
    residence: Residence
    cache: Cache
    decoder: Decoder


class Tune:
    """One attempt at a tune."""

    def __init__(self, start: Start, shop: Workshop, report: Report, orders: Orders) -> None:
        """orders: heeded between two pictures and two steps."""
        self._start = start
        self._shop = shop
        self._report = report
        self._orders = orders
        self._family = family(start.engine)
        self._training: Training | None = None

    def run(self) -> Saved | Stopped:
        """Makes the LoRA, unless it is told to stop.

        Raises:
            TuneFault: it cannot be made; anything else is a fault of ours or of the machine.
        """
        try:
            return self._run()
        except Interrupted:
            done = self._training.step if self._training is not None else 0
            return Stopped(self._start.tune_id, self._start.epoch, done)

    def _run(self) -> Saved:
        start = self._start
        self._phase("judging")
        every = defaults.snapshot_every(start.hyperparameters)
        earlier = recipe.read(start.resolved_recipe) if start.resolved_recipe else None
        shape = self._family.describe(start.checkpoint)
        wanted = earlier.hyperparameters if earlier else start.hyperparameters
        hyperparameters = defaults.filled(start.engine, wanted, self._shop.device.type, shape.hyperparameters)
        kept = self._judged(shape, earlier)
        resolved = earlier or self._resolved(shape, hyperparameters, kept)
        self._tell_recipe(resolved, earlier is not None)
        before = self._snapshot(resolved)
        return self._made(self._base(resolved), resolved, kept, before, every)

    def _judged(self, shape: Shape, earlier: Recipe | None) -> list[Kept]:
        start = self._start
        resize = earlier.resize if earlier else start.resize_images is not False
        by = rules(shape.native_size, shape.divisibility, resize)
        kept = judge(start, by, self._shop.decoder, self._report, self._orders.heed, earlier)
        said = {one.file_id: one.caption for one in kept}
        if lacking := captions.without_trigger(said, start.trigger_word):
            self._warn("CAPTION_LACKS_TRIGGER", captions.lacks_trigger_note(lacking, start.trigger_word))
        return kept

    def _resolved(self, shape: Shape, hyperparameters: dict[str, defaults.Value], kept: list[Kept]) -> Recipe:
        start = self._start
        return Recipe(
            version=recipe.VERSION,
            engine=start.engine,
            checkpoint=start.checkpoint.digest,
            revision=start.checkpoint.revision,
            seed=secrets.randbelow(2**32) if start.seed is None else start.seed,
            steps=start.steps,
            trigger_word=start.trigger_word,
            native_size=shape.native_size,
            resize=start.resize_images is not False,
            hyperparameters=hyperparameters,
            pictures=tuple(Picture(one.sha256, recipe.digest(one.caption), one.crop) for one in kept),
            environment=hardware.environment(self._shop.device, self._shop.threads),
        )

    def _tell_recipe(self, resolved: Recipe, earlier: bool) -> None:
        text = recipe.canonical(resolved)
        self._report(Resolved(self._start.tune_id, self._start.epoch, text, recipe.digest(text)))
        here = hardware.environment(self._shop.device, resolved.environment.threads)
        if earlier and here != resolved.environment:
            told = f"it began on {resolved.environment} and goes on on {here}"
            self._warn("ENVIRONMENT_CHANGED", f"{told}; its bytes may differ from an undisturbed run's")

    def _base(self, resolved: Recipe) -> Family:
        shop, start = self._shop, self._start
        precision = resolved.word("precision")
        warm = shop.residence.holds(start.engine, start.checkpoint, precision)
        if not warm:
            self._phase("loading")
        base = shop.residence.base(start.engine, start.checkpoint, precision)
        if not warm:
            self._report(Resident(shop.residence.digests, shop.residence.size_bytes))
        return base

    def _snapshot(self, resolved: Recipe) -> Snapshot | None:
        path = self._start.snapshot
        return None if path is None else snapshot.read(Path(path), recipe.digest(recipe.canonical(resolved)))

    def _made(self, base: Family, resolved: Recipe, kept: list[Kept], before: Snapshot | None, every: float) -> Saved:
        self._phase("encoding")
        said = [one.caption for one in kept]
        if cuts := captions.cut({one.file_id: one.caption for one in kept}, base.unread):
            self._warn("CAPTION_CUT", captions.cut_note(cuts))
        with computing(resolved, self._shop):
            files = [one.file for one in kept]
            encodings = encode(base, resolved, files, said, self._shop.cache, self._orders.heed)
            course = self._course(base, resolved, encodings, said)
            for file in files:
                file.unlink()
            with worn(base, resolved) as adapter:
                self._training = Training(base, course, adapter, resolved)
                if before is not None:
                    self._training.resume(before)
                progress = Progress(resolved.steps, self._tell_steps, counted=before.tally if before else None)
                self._phase("training")
                folder, done = Path(self._start.folder), self._training.step
                keeper = Keeper(folder, every, self._tell_snapshot, self._no_snapshot, done)
                self._training.run(progress, keeper, self._orders, self._warn)
                self._phase("saving")
                return self._saved(adapter, resolved, said, progress)

    def _course(self, base: Family, resolved: Recipe, seen: Encodings, said: list[str]) -> Course:
        timesteps, cache = len(base.alphas_cumprod), self._shop.cache
        lessons = Lessons(seen, resolved, timesteps, base.device, resolved.number("caption_dropout"))
        if resolved.number("prior_preservation_weight") == 0:
            return Course(lessons)
        brought = self._family.prior(self._start.checkpoint)
        known = prior.encodings(base, resolved, brought, seen, said, cache, self._orders.heed)
        return Course(lessons, Lessons(known, resolved, timesteps, base.device, prior.CAPTION_DROPOUT, "prior "))

    def _saved(self, adapter: Adapter, resolved: Recipe, said: list[str], progress: Progress) -> Saved:
        path = Path(self._start.folder) / "lora.safetensors"
        state = {f"unet.{name}": tensor for name, tensor in adapter.state().items()}
        tensors = kohya.layout(state, resolved.number("alpha"))
        sha256, size = kohya.write(path, tensors, kohya.metadata(resolved, self._family, said))
        tune, steps = self._start, resolved.steps
        loss, pictures = progress.final_loss, len(resolved.pictures)
        return Saved(tune.tune_id, tune.epoch, str(path), sha256, size, steps, loss, pictures)

    def _phase(self, phase: str) -> None:
        self._orders.heed()
        self._report(PhaseChanged(self._start.tune_id, self._start.epoch, phase))

    def _warn(self, reason: str, details: str) -> None:
        self._report(Warned(self._start.tune_id, self._start.epoch, reason, details[:2000]))

    def _tell_steps(self, lines: list[StepLine]) -> None:
        self._report(Stepped(self._start.tune_id, self._start.epoch, lines))

    def _tell_snapshot(self, path: Path, sha256: str, size: int, step: int) -> None:
        self._report(Snapshotted(self._start.tune_id, self._start.epoch, str(path), sha256, size, step))

    def _no_snapshot(self, why: str) -> None:
        self._warn("SNAPSHOT_FAILED", why)


@contextmanager
def worn(base: Family, resolved: Recipe) -> Iterator[Adapter]:
    """A LoRA on the base, taken off whatever happens."""
    adapter = Adapter(base, resolved)
    try:
        yield adapter
    finally:
        base.set_checkpointing(False)
        adapter.remove()


@contextmanager
def computing(resolved: Recipe, shop: Workshop) -> Iterator[None]:
    """torch as the recipe wants it, and afterwards as it was."""
    deterministic = resolved.flag("deterministic")
    hardware.set_deterministic(deterministic)
    torch.set_num_threads(resolved.environment.threads)  # the order of additions depends on it
    try:
        with hardware.attention(deterministic, shop.device):
            yield
    finally:
        hardware.set_deterministic(False)
        torch.set_num_threads(shop.threads)

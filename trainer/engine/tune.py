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

from trainer.engine import captions, defaults, hardware, kohya, objective, prior, recipe
from trainer.engine.buckets import rules
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.encoding import Encodings, encode
from trainer.engine.families import family
from trainer.engine.families.base import Family, Shape
from trainer.engine.judging import Kept, judge
from trainer.engine.lessons import Lessons
from trainer.engine.loop import Course, Pace, train
from trainer.engine.lora import Adapter
from trainer.engine.progress import Progress
from trainer.engine.recipe import Picture, Recipe
from trainer.engine.residence import Residence
from trainer.failures import SnapshotRefused
from trainer.pipe import PhaseChanged, Resident, Resolved, Saved, Start, StepLine, Stepped, ToSupervisor, Warned

Report = Callable[[ToSupervisor], None]


class Interrupted(Exception):
    """The tune was told to stop."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step
        """Steps done."""


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

    def __init__(self, start: Start, shop: Workshop, report: Report, stopping: Callable[[], bool]) -> None:
        """stopping: whether the tune was told to stop; asked between two pictures and two steps."""
        self._start = start
        self._shop = shop
        self._report = report
        self._stopping = stopping
        self._family = family(start.engine)
        self._step = 0

    def run(self) -> Saved:
        """Makes the LoRA.

        Raises:
            Interrupted: it was told to stop.
            TuneFault: it cannot be made; anything else is a fault of ours or of the machine.
        """
        start = self._start
        if start.snapshot is not None:
            raise SnapshotRefused("this trainer cannot go on from a snapshot")
        self._phase("judging")
        earlier = recipe.read(start.resolved_recipe) if start.resolved_recipe else None
        shape = self._family.describe(start.checkpoint)
        wanted = earlier.hyperparameters if earlier else start.hyperparameters
        hyperparameters = defaults.filled(start.engine, wanted, self._shop.device.type, shape.hyperparameters)
        kept = self._judged(shape, earlier)
        resolved = earlier or self._resolved(shape, hyperparameters, kept)
        self._tell_recipe(resolved, earlier is not None)
        return self._made(self._base(resolved), resolved, kept)

    def _judged(self, shape: Shape, earlier: Recipe | None) -> list[Kept]:
        start = self._start
        resize = earlier.resize if earlier else start.resize_images is not False
        by = rules(shape.native_size, shape.divisibility, resize)
        kept = judge(start, by, self._shop.decoder, self._report, self._pause, earlier)
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

    def _made(self, base: Family, resolved: Recipe, kept: list[Kept]) -> Saved:
        self._phase("encoding")
        said = [one.caption for one in kept]
        if cuts := captions.cut({one.file_id: one.caption for one in kept}, base.unread):
            self._warn("CAPTION_CUT", captions.cut_note(cuts))
        with computing(resolved, self._shop):
            files = [one.file for one in kept]
            encodings = encode(base, resolved, files, said, self._shop.cache, self._pause)
            course = self._course(base, resolved, encodings, said)
            for file in files:
                file.unlink()
            with worn(base, resolved) as adapter:
                self._phase("training")
                progress = Progress(resolved.steps, self._tell_steps)
                self._train(base, course, adapter, resolved, progress)
                self._phase("saving")
                return self._saved(adapter, resolved, said, progress)

    def _course(self, base: Family, resolved: Recipe, seen: Encodings, said: list[str]) -> Course:
        timesteps, cache = len(base.alphas_cumprod), self._shop.cache
        lessons = Lessons(seen, resolved, timesteps, base.device, resolved.number("caption_dropout"))
        if resolved.number("prior_preservation_weight") == 0:
            return Course(lessons)
        brought = self._family.prior(self._start.checkpoint)
        known = prior.encodings(base, resolved, brought, seen, said, cache, self._pause)
        return Course(lessons, Lessons(known, resolved, timesteps, base.device, prior.CAPTION_DROPOUT, "prior "))

    def _train(self, base: Family, course: Course, adapter: Adapter, resolved: Recipe, progress: Progress) -> None:
        diffusion = objective.diffusion(
            base.alphas_cumprod, base.predicts_v, resolved.number("min_snr_gamma"), base.device
        )
        pace = Pace(resolved.whole("batch_size"), resolved.flag("gradient_checkpointing"))
        while self._step < resolved.steps:
            base.set_checkpointing(pace.checkpointing)
            try:
                for step in train(base, course, diffusion, adapter, resolved, pace, self._step):
                    self._step = step.step
                    progress.add(step)
                    self._pause()
            except torch.OutOfMemoryError:
                # The step that failed has changed nothing: it is made again, with the same draws.
                if (told := pace.ease()) is None:
                    raise
                self._warn("OUT_OF_MEMORY", f"step {self._step + 1} did not fit the device's memory: {told}")
        progress.flush()

    def _saved(self, adapter: Adapter, resolved: Recipe, said: list[str], progress: Progress) -> Saved:
        path = Path(self._start.folder) / "lora.safetensors"
        state = {f"unet.{name}": tensor for name, tensor in adapter.state().items()}
        tensors = kohya.layout(state, resolved.number("alpha"))
        sha256, size = kohya.write(path, tensors, kohya.metadata(resolved, self._family, said))
        tune, steps = self._start, resolved.steps
        loss, pictures = progress.final_loss, len(resolved.pictures)
        return Saved(tune.tune_id, tune.epoch, str(path), sha256, size, steps, loss, pictures)

    def _phase(self, phase: str) -> None:
        self._pause()
        self._report(PhaseChanged(self._start.tune_id, self._start.epoch, phase))

    def _warn(self, reason: str, details: str) -> None:
        self._report(Warned(self._start.tune_id, self._start.epoch, reason, details[:2000]))

    def _tell_steps(self, lines: list[StepLine]) -> None:
        self._report(Stepped(self._start.tune_id, self._start.epoch, lines))

    def _pause(self) -> None:
        if self._stopping():
            raise Interrupted(self._step)


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

"""Examines what tunes have taught about one subject: every figure and the sheet to look at. Called by
`scripts/bench quality`; knows stock diffusers, and nothing of the service that made the LoRAs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from benchmarks.basics.spread import spread
from benchmarks.quality import drawings, held_out, judge, obedience, recogniser
from benchmarks.quality.figures import Bar, all_passed, beside, kept
from benchmarks.quality.sheet import sheet, tiles
from benchmarks.quality.subjects import Subject, shown
from benchmarks.quality.tuning import Taught
from trainer.bases import tiny_shapes

Pipeline = Any  # a StableDiffusionPipeline: diffusers leaves it untyped

BARS = {
    "recognised_before": Bar(0.10, upper=True),  # share of the base's samples
    "recognised_after": Bar(0.80),  # share of the tuned model's samples
    "recogniser_right": Bar(recogniser.RIGHT),  # share of pictures it has not seen
    "diversity_over_drawn": Bar(0.5),
    "held_out_loss_over_base": Bar(0.9, upper=True),
    "obedience_kept": Bar(0.9),  # without the trigger word, over the base's
}
OBEDIENCE_SEED = 100  # its prompts and noise are the same for the base and for every tune
STRANGE_SEED = 500  # of the base's samples that a recogniser learns from; far from any that is measured


@dataclass(frozen=True)
class Effort:
    """How much of everything."""

    steps: int | None = None  # of each tune; None: what its subject wants
    samples: int = 16  # for each seed
    plain_prompts: int = 48  # without the trigger word
    lessons: int = recogniser.STEPS
    of_base: int = 96  # samples of the base for a recogniser to learn from


QUICK = Effort(steps=30, samples=4, plain_prompts=8, lessons=60, of_base=16)


@dataclass
class Examiner:
    """The base, drawn with by stock diffusers, and those who judge what it draws."""

    pipeline: Pipeline
    judging: judge.Judge
    effort: Effort
    kept: Path | None = None
    """Where trained recognisers are kept; none: each is trained afresh."""
    base_obeys: dict[str, float] = field(default_factory=dict)
    """The base's obedience, measured once for all subjects. Written by `obeys`."""

    def examine(self, subject: Subject, tunes: Sequence[Taught], out: Path) -> dict[str, Any]:
        """All figures of these tunes, one a seed; the sheet goes to `out`."""
        before = {tune.seed: self.samples(subject, tune.seed) for tune in tunes}
        after, losses, obeyed = {}, [], []
        base_loss, base_obeys = held_out.loss(self.pipeline, subject), self.obeys()
        for tune in tunes:
            with wearing(self.pipeline, tune.lora):
                after[tune.seed] = self.samples(subject, tune.seed)
                losses.append(held_out.loss(self.pipeline, subject))
                obeyed.append(self._obedience())
        lost = [kept(found, base_obeys) for found in obeyed]
        figures = {
            **self._seen(subject, list(before.values()), list(after.values())),
            "held_out_loss_over_base": beside([loss / base_loss for loss in losses], BARS["held_out_loss_over_base"]),
            **{
                f"obedience_kept_{name}": beside([found[name] for found in lost], BARS["obedience_kept"])
                for name in base_obeys
            },
        }
        self._page(subject, before, after).save(out / f"{subject.name}.png", optimize=True)
        return {
            "trigger_word": subject.trigger,
            "tune_seconds": spread([tune.seconds for tune in tunes], 1),
            "base_held_out_loss": round(base_loss, 4),
            "base_obedience": {name: round(share, 3) for name, share in base_obeys.items()},
            **figures,
            "passed": all_passed(figures),
        }

    def samples(self, subject: Subject, seed: int) -> Tensor:
        """One picture for each of the subject's prompts, as the pipeline is now."""
        return obedience.generate(self.pipeline, subject.prompts[: self.effort.samples], seed)

    def obeys(self) -> dict[str, float]:
        """The base's own obedience; call it while no LoRA is worn."""
        if not self.base_obeys:
            self.base_obeys = self._obedience()
        return self.base_obeys

    def _obedience(self) -> dict[str, float]:
        found = obedience.measure(self.pipeline, self.judging, OBEDIENCE_SEED, self.effort.plain_prompts)
        return {name: found[name] for name in judge.QUESTIONS}

    def _seen(self, subject: Subject, before: list[Tensor], after: list[Tensor]) -> dict[str, Any]:
        """What the recogniser says of the samples; nothing where there is none, since nobody can draw the subject."""
        if not subject.drawable:
            return {}
        made, right = self._recogniser(subject)
        drawn = made.diversity(drawings.tensor(subject.wanted[: self.effort.samples]))
        return {
            "recogniser_right": beside([right["all"]], BARS["recogniser_right"]) | {"kinds": rounded(right)},
            "recognised_before": beside([made.share(seen) for seen in before], BARS["recognised_before"]),
            "recognised_after": beside([made.share(seen) for seen in after], BARS["recognised_after"]),
            "diversity_over_drawn": beside(
                [made.diversity(seen) / drawn for seen in after], BARS["diversity_over_drawn"]
            ),
        }

    def _recogniser(self, subject: Subject) -> tuple[recogniser.Recogniser, dict[str, float]]:
        """A trained one and how often it is right; call it while no LoRA is worn."""
        words = [*obedience.asked(STRANGE_SEED, self.effort.of_base)[1], *subject.prompts]
        of_base = obedience.generate(self.pipeline, words, STRANGE_SEED)
        unseen = obedience.generate(self.pipeline, words[-2 * len(subject.prompts) :], STRANGE_SEED + 1)
        path = self.kept / f"{subject.name}-{tiny_shapes.sha256()[:12]}.pt" if self.kept else None
        made = recogniser.Recogniser().eval()
        if path and path.exists():
            made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            made = recogniser.train(subject, of_base, self.pipeline.vae, self.effort.lessons)
        if path:
            torch.save(made.state_dict(), path)
        return made, recogniser.accuracy(made, subject, unseen)

    def _page(self, subject: Subject, before: dict[int, Tensor], after: dict[int, Tensor]) -> Picture:
        first = next(iter(before))
        words = subject.prompts[: self.effort.samples]
        rows = {f"the base, seed {first}": tiles(before[first], words)}
        rows |= {f"after the tune, seed {seed}": tiles(pictures, words) for seed, pictures in after.items()}
        pictures = {"held out": subject.held_out(), "taught": subject.taught()}
        beside = {
            heading: tiles(drawings.tensor(shown(files)), [caption for _, caption in files])
            for heading, files in pictures.items()
        }
        return sheet(rows, beside)


@contextmanager
def wearing(pipeline: Pipeline, lora: Path) -> Iterator[None]:
    """The pipeline with the LoRA at full weight, loaded as any user of diffusers would; without it again at the end."""
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="tune")
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


def rounded(shares: dict[str, float]) -> dict[str, float]:
    """To thousandths."""
    return {name: round(share, 3) for name, share in shares.items()}

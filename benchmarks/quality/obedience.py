"""Does tiny-shapes draw what it is asked? `python -m benchmarks.quality.obedience --seeds 0 1 2` prints JSON.

For each seed: random captions that name shape, colour and background, one picture each, and the share of pictures in
which the judge sees what was named. The judge's own share right on drawn pictures stands beside it.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from benchmarks.quality import judge
from trainer.bases import tiny_shapes
from trainer.bases.tiny_shapes import world

Pipeline = Any  # a StableDiffusionPipeline: diffusers leaves it untyped

BARS = {"background": 0.95, "colour": 0.95, "shape": 0.85}  # least share of pictures
STEPS = 25  # of DDIM
GUIDANCE = 7.5  # StableDiffusionPipeline's own default
JUDGE_BAR = 0.98  # least share of drawn pictures that the judge names rightly


def main() -> None:
    """Trains or loads the judge, draws, judges, prints."""
    wanted = arguments()
    logging.disable(logging.WARNING)
    torch.set_num_threads(wanted.threads)
    judging = judge.load_or_train(wanted.judge) if wanted.judge else judge.train()
    pipeline = load(wanted.model)
    runs = [measure(pipeline, judging, seed, wanted.pictures, wanted.steps, wanted.guidance) for seed in wanted.seeds]
    said = {
        "pictures_a_seed": wanted.pictures,
        "steps": wanted.steps,
        "guidance": wanted.guidance,
        "judge_right_on_drawn": judge.accuracy(judging),
        "seeds": runs,
        "mean": {name: round(float(np.mean([run[name] for run in runs])), 4) for name in BARS},
        "bars": BARS | {"judge": JUDGE_BAR},
    }
    said["passed"] = min(said["judge_right_on_drawn"].values()) >= JUDGE_BAR and all(
        said["mean"][name] >= bar for name, bar in BARS.items()
    )
    print(json.dumps(said, indent=2))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pictures", type=int, default=64, help="pictures for each seed")
    parser.add_argument("--steps", type=int, default=STEPS, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--model", type=Path, default=tiny_shapes.path(), help="a pipeline folder")
    parser.add_argument("--judge", type=Path, help="where a trained judge is kept; without it one is trained afresh")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def load(folder: Path) -> Pipeline:
    """The stock pipeline in fp32, with DDIM."""
    pipeline: Pipeline = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        folder, dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(
    pipeline: Pipeline, judging: judge.Judge, seed: int, pictures: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> dict[str, Any]:
    """The shares right for one seed, and what went wrong."""
    started = time.monotonic()
    scenes, captions = asked(seed, pictures)
    verdicts = judging.judge(generate(pipeline, captions, seed, steps, guidance))
    wrong = [
        {"caption": words, "seen": vars(seen)}
        for words, seen, scene in zip(captions, verdicts, scenes, strict=True)
        if any(getattr(seen, name) != getattr(scene, name) for name in BARS)
    ]
    return {
        "seed": seed,
        **judge.shares(verdicts, scenes),
        "seconds": round(time.monotonic() - started, 1),
        "wrong": wrong,
    }


def asked(seed: int, count: int) -> tuple[list[world.Scene], list[str]]:
    """Random scenes, and captions that name shape, colour and background of each."""
    rng = Random(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    return scenes, [world.caption(scene, rng, complete=True) for scene in scenes]


def generate(
    pipeline: Pipeline, captions: Sequence[str], seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> Tensor:
    """One picture for each caption, (N, 3, 64, 64) uint8; each from a noise of its own, drawn from `seed`."""
    made: list[Tensor] = []
    for first in range(0, len(captions), 16):
        words = list(captions[first : first + 16])
        noises = [torch.Generator().manual_seed(seed * 1000 + first + k) for k in range(len(words))]
        shown = pipeline(words, num_inference_steps=steps, guidance_scale=guidance, generator=noises, output_type="np")
        made.append(torch.from_numpy(shown.images).permute(0, 3, 1, 2))
    return (torch.cat(made) * 255).round().to(torch.uint8)


if __name__ == "__main__":
    main()

"""Says which shape, which colour and which background a 64x64 picture shows.

A small CNN, trained in a minute on drawn pictures and then asked about drawn pictures it has not seen: what it says of
generated ones is worth only as much as that. Called by `obedience`, by `scripts/bench quality`, whose recognisers share
its eyes, and by the tests; knows nothing of diffusion.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.bases.tiny_shapes import world

QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "background": tuple(world.COLOURS),
}
DRAWN = 10_240  # pictures it learns from
EPOCHS = 7
BATCH = 64
RATE = 4e-3
HIDDEN = 128  # traits that a head weighs


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one picture."""

    shape: str
    colour: str
    background: str


class Eyes(nn.Module):
    """(B, 3, 64, 64) floats in [0, 1] to what is in them: its traits, and these weighed for a head to read."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in itertools.pairwise(widths)
        )
        self.hidden = nn.Linear(2 * widths[-1], HIDDEN)

    def traits(self, pixels: Tensor) -> Tensor:
        """What is anywhere in the picture and how much of it, (B, 192)."""
        for stage in self.stages:
            pixels = stage(pixels)
        return torch.cat([pixels.amax(dim=(2, 3)), pixels.mean(dim=(2, 3))], dim=1)

    def weighed(self, pixels: Tensor) -> Tensor:
        """(B, HIDDEN)."""
        return F.relu(self.hidden(self.traits(pixels)))


class Judge(Eyes):
    """(B, 3, 64, 64) floats in [0, 1] to logits for each question."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(HIDDEN, len(answers)) for name, answers in QUESTIONS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits, (B, number of answers), by question."""
        weighed = self.weighed(pixels)
        return {name: head(weighed) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, pictures: Tensor) -> list[Verdict]:
        """One verdict for each of (B, 3, 64, 64) uint8."""
        logits = self.eval()(pictures.float() / 255)
        named = [[QUESTIONS[name][k] for k in logits[name].argmax(dim=1).tolist()] for name in QUESTIONS]
        return [Verdict(*answers) for answers in zip(*named, strict=True)]


def train(seed: int = 0) -> Judge:
    """A judge that has learned from DRAWN pictures."""
    torch.manual_seed(seed)
    pictures, scenes = drawn(DRAWN, seed)
    answers = {name: numbered(scenes, name) for name in QUESTIONS}
    judge = Judge()
    steps = EPOCHS * DRAWN // BATCH
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(DRAWN, (BATCH,))
        logits = judge(worn(pictures[chosen].float() / 255))
        loss = torch.stack([F.cross_entropy(logits[name], answers[name][chosen]) for name in QUESTIONS]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
        schedule.step()
    return judge.eval()


def load_or_train(path: Path, seed: int = 0) -> Judge:
    """The judge kept at `path`, trained and written there the first time."""
    if not path.exists():
        torch.save(train(seed).state_dict(), path)
    judge = Judge()
    judge.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return judge.eval()


def accuracy(judge: Judge, seed: int = 1_000_000, count: int = 2048) -> dict[str, float]:
    """The share of unseen drawn pictures that it names rightly, for each question."""
    pictures, scenes = drawn(count, seed)
    return shares(judge.judge(pictures), scenes)


def shares(verdicts: Sequence[Verdict], scenes: Sequence[world.Scene]) -> dict[str, float]:
    """For each question, the share of verdicts that name what the scene names."""
    return {
        name: sum(getattr(seen, name) == getattr(scene, name) for seen, scene in zip(verdicts, scenes, strict=True))
        / len(scenes)
        for name in QUESTIONS
    }


def drawn(count: int, seed: int) -> tuple[Tensor, list[world.Scene]]:
    """`count` pictures, (N, 3, 64, 64) uint8, and what they show."""
    rng = Random(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    pictures = np.stack([world.draw(scene, rng) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), scenes


def numbered(scenes: Sequence[world.Scene], question: str) -> Tensor:
    """The right answers as class numbers, (N,)."""
    return torch.tensor([QUESTIONS[question].index(getattr(scene, question)) for scene in scenes])


def worn(pixels: Tensor) -> Tensor:
    """A batch made softer, noisier and a little off in colour, as generated pictures are."""
    small = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    softness = torch.rand(len(pixels), 1, 1, 1)
    tint = 0.04 * torch.randn(len(pixels), 3, 1, 1)
    noise = 0.04 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)
    return (torch.lerp(pixels, small, softness) + tint + noise).clamp(0, 1)


def main() -> None:
    """Trains a judge and prints how often it is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    started = time.monotonic()
    right = accuracy(train(wanted.seed))
    print(json.dumps({"right_on_drawn": right, "seconds": round(time.monotonic() - started, 1)}, indent=2))


if __name__ == "__main__":
    main()

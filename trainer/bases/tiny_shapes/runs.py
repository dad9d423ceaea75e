"""The folder a training run lives in: atomic checkpoints, loss log, learning rate.

Called by `train` and its stages; knows nothing of models. Anything may be killed at any moment: a run started again in
the same folder goes on from its newest checkpoint. Batches are drawn from a generator seeded by (seed, step), so no
random state is ever saved.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY = 250  # steps


def save(state: Mapping[str, Any], path: Path) -> None:
    """Writes beside the file and renames, so that a reader sees the old state or the new one, never half of one."""
    beside = path.with_suffix(".partial")
    torch.save(dict(state), beside)
    beside.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The state that `save` wrote, or None before the first one."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step; runs of neighbouring seeds share none within 100,003 steps."""
    return torch.Generator().manual_seed((seed * 100_003 + step) % 2**32)


def rate(step: int, steps: int, peak: float, warm_up: int, hold: float) -> float:
    """Warm-up, then `peak` until the share `hold` of the run, then a half cosine down to zero.

    Holding before falling lets a run be shortened or lengthened while it is still holding.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    fall_from = hold * steps
    if step < fall_from:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - fall_from) / max(1.0, steps - fall_from)))


class LossLog:
    """One JSON line for each ten steps' mean loss. Written by the training loop, read by the picture of the curve."""

    def __init__(self, path: Path, every: int = 10) -> None:
        self.path = path
        self.every = every
        self.losses: list[float] = []

    def add(self, step: int, loss: float) -> None:
        """Takes one step's loss; writes the mean once `every` are together."""
        self.losses.append(loss)
        if len(self.losses) == self.every:
            line = {"step": step + 1, "loss": round(sum(self.losses) / self.every, 6)}
            with self.path.open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.losses.clear()


def read_losses(path: Path) -> Iterator[tuple[int, float]]:
    """(step, mean loss) in order; where a killed run repeated steps, the later line counts."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    yield from sorted({line["step"]: line["loss"] for line in lines}.items())

"""`scripts/bench full_size [--quick] [--only PART...]`: what tunes of a base of Stable Diffusion 1.5's size take on the
GPU that is here; prints one JSON object. The weights are random, for they change neither time nor memory.

The engine as its process runs it, without the process, and a bare loop on the same loaded base take turns; see
bare_loop. Knows the engine, not the service.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from PIL import Image, ImageDraw

from benchmarks import bare_loop
from benchmarks.basics.__main__ import machine
from benchmarks.basics.spread import spread
from tests.trainer.full_size import make_full_base, of_pixels
from tests.trainer.tiny import ENGINE
from trainer.engine import hardware, pictures
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.engine.orders import Orders
from trainer.engine.residence import Residence
from trainer.engine.tune import Tune, Workshop
from trainer.pipe import (
    CheckpointSource,
    Hyperparameter,
    PictureFile,
    Resolved,
    Saved,
    Snapshotted,
    SnapshotUploaded,
    Start,
    Stepped,
    Stop,
    Stopped,
    ToSupervisor,
    Warned,
)

NATIVE = 512  # pixels
CASES = [(pixels, batch) for pixels in (512, 1024) for batch in (1, 4)]
WARM_UP = 10  # steps left out at the beginning: libraries choose their kernels, and passes are recorded
BARE_WARM_UP = 3
PAIRS, SECONDS = 3, 2.0  # of the engine and the bare loop; each of them, about
STEPS = 20, 200  # least and most of one; the bare loop may make fewer
GB = 1e9


@dataclass
class Run:
    """What one tune told."""

    began: float
    orders: Orders
    marks: list[tuple[int, float]] = field(default_factory=list)
    """(step, when it was told); telling it has waited for the device."""
    told: list[ToSupervisor] = field(default_factory=list)
    ended: Saved | Stopped | None = None
    seconds: float = 0.0
    """From its Start to its end."""

    def speed(self) -> float:
        """Steps a second after the warm-up."""
        marks = [mark for mark in self.marks if mark[0] >= WARM_UP]
        (first, started), (last, stopped) = marks[0], marks[-1]
        return (last - first) / (stopped - started)

    def of(self, kind: type[Any]) -> list[Any]:
        """What it told of that kind."""
        return [message for message in self.told if isinstance(message, kind)]


Answer = Callable[[Run, ToSupervisor], Stop | SnapshotUploaded | None]
"""What the supervisor says to what a tune tells."""


def _silent(run: Run, told: ToSupervisor) -> None:
    pass


class Stage:
    """One engine, one base, four pictures of each size."""

    def __init__(self, shop: Workshop, folder: Path) -> None:
        self.shop = shop
        self._folder = folder
        self._base = make_full_base(folder / "base", "cuda")
        self._tunes = 0

    def source(self, pixels: int) -> CheckpointSource:
        """The base for pictures of that size; the same to whoever keeps it loaded."""
        return CheckpointSource("folder", str(of_pixels(self._base, pixels)), "base")

    def files(self, pixels: int) -> list[Path]:
        """Squares with a disc each."""
        paths = [self._folder / f"{pixels}-{number}.png" for number in range(4)]
        for number, path in enumerate(path for path in paths if not path.exists()):
            picture = Image.effect_noise((pixels, pixels), 20 + 40 * number).convert("RGB")
            ImageDraw.Draw(picture).ellipse((0, 0, pixels // (number + 1), pixels // 2), fill="red")
            picture.save(path, compress_level=1)
        return paths

    def tune(
        self, pixels: int, steps: int, answer: Answer = _silent, going_on: Run | None = None, **chosen: Hyperparameter
    ) -> Run:
        """One tune, from Start to end. going_on: from the snapshot that this one left; chosen: hyperparameters."""
        self._tunes += 1
        folder = self._folder / f"tune-{self._tunes}"
        folder.mkdir()
        given = [PictureFile(path.stem, str(path), "", "zwx") for path in self.files(pixels)]
        start = Start("tune", 1, ENGINE, steps, "zwx", given, self.source(pixels), str(folder), 1, None, chosen)
        if going_on is not None:
            (taken,), (resolved,) = going_on.of(Snapshotted), going_on.of(Resolved)
            start = replace(start, snapshot=taken.path, resolved_recipe=json.loads(resolved.json))
        run = Run(time.perf_counter(), Orders())

        def tell(message: ToSupervisor) -> None:
            run.told.append(message)
            if isinstance(message, Stepped):
                run.marks.append((message.steps[-1].step, time.perf_counter()))
            if (said := answer(run, message)) is not None:
                run.orders.note(said)

        run.ended = Tune(start, self.shop, tell, run.orders).run()
        run.seconds = time.perf_counter() - run.began
        return run

    def bare(self, pixels: int, batch: int, steps: int) -> float:
        """Steps a second of the bare loop, on the base that is loaded, so many of them after the warm-up."""
        source = self.source(pixels)
        base = self.shop.residence.base(ENGINE, source, "bf16")
        assert isinstance(base, StableDiffusion15)
        latents = bare_loop.latents(base, source, self.files(pixels))
        return steps / bare_loop.loop(base, latents, batch, BARE_WARM_UP + steps, BARE_WARM_UP)


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench full_size", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts, in this order; all where none is named")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    wanted = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the engine's process does
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    hardware.prepare(1)
    pictures.prepare()
    device = hardware.device_of("cuda")
    name, memory = hardware.describe(device)
    gpu = {"gpu": name, "gpu_memory_gb": round(memory / GB, 1), "torch": torch.__version__}
    figures: dict[str, Any] = {"machine": machine() | gpu}
    with tempfile.TemporaryDirectory() as folder, Decoder() as decoder:
        shop = Workshop(device, 1, Residence(device), Cache(1 << 31), decoder)
        figures |= measured(Stage(shop, Path(folder)), 2 if wanted.quick else PAIRS, wanted.only)
    print(json.dumps(figures, indent=2))


def measured(stage: Stage, times: int, only: list[str] | None) -> dict[str, Any]:
    """Each is told as it comes, for the whole takes minutes."""
    figures = {}
    for name in only or PARTS:
        figures[name] = PARTS[name](stage, times)
        print(f"bench: {name} {json.dumps(figures[name])}", file=sys.stderr)
    return figures


def case(stage: Stage, pairs: int, *, pixels: int, batch: int) -> dict[str, Any]:
    """Engine and bare loop in pairs; the ratio is taken pair by pair."""
    first = stage.tune(pixels, WARM_UP + 20, batch_size=batch)  # loads the base, encodes the pictures
    steps = WARM_UP + max(STEPS[0], min(STEPS[1], round(first.speed() * SECONDS)))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    again = stage.tune(pixels, WARM_UP, batch_size=batch)
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    bare_steps = max(5, min(STEPS[1], round(stage.bare(pixels, batch, 2) * SECONDS)))
    served, bare = [], []
    for _ in range(pairs):
        served.append(stage.tune(pixels, steps, batch_size=batch).speed())
        bare.append(stage.bare(pixels, batch, bare_steps))
    return {
        "steps": steps,
        "engine_steps_per_second": spread(served),
        "bare_loop_steps_per_second": spread(bare),
        "ratio": spread([ours / theirs for ours, theirs in zip(served, bare, strict=True)]),
        "peak_allocated_gb": round(allocated / GB, 2),
        "peak_reserved_gb": round(reserved / GB, 2),
        "out_of_memory": [told.details for told in again.of(Warned) if told.reason == "OUT_OF_MEMORY"],
        "seconds_to_first_step_cold": round(first.marks[0][1] - first.began, 2),
        "seconds_to_first_step_warm": round(again.marks[0][1] - again.began, 2),
    }


def exact(stage: Stage, times: int) -> dict[str, Any]:
    """Once: what determinism costs, and whether a tune that left and went on gives the bytes of the undisturbed."""
    steps = WARM_UP + 30
    plain, whole = (stage.tune(NATIVE, steps, deterministic=wanted) for wanted in (False, True))
    left = stage.tune(NATIVE, steps, lambda run, told: _leave(told, steps // 2), deterministic=True)
    gone_on = stage.tune(NATIVE, steps, going_on=left)
    assert isinstance(whole.ended, Saved)
    assert isinstance(gone_on.ended, Saved)
    return {
        "speed_over_undetermined": round(whole.speed() / plain.speed(), 3),
        "went_on_after_step": left.of(Snapshotted)[0].step,
        "same_bytes_when_gone_on": gone_on.ended.sha256 == whole.ended.sha256,
        "lora_mb": round(whole.ended.size_bytes / 1e6, 1),
    }


def _leave(told: ToSupervisor, after: int) -> Stop | None:
    return Stop("tune", 1, snapshot=True) if isinstance(told, Stepped) and told.steps[-1].step >= after else None


def snapshots(stage: Stage, times: int) -> dict[str, Any]:
    """Once: one a second, each uploaded at once: what they cost of the speed."""
    steps = WARM_UP + round(5.0 * stage.tune(NATIVE, WARM_UP + STEPS[0]).speed())
    without = stage.tune(NATIVE, steps, snapshot_every_seconds=0.0)

    def answer(run: Run, told: ToSupervisor) -> SnapshotUploaded | None:
        return SnapshotUploaded("tune", 1, 0.0) if isinstance(told, Snapshotted) else None

    often = stage.tune(NATIVE, steps, answer, snapshot_every_seconds=1.0)
    taken = often.of(Snapshotted)
    lost = (often.marks[-1][1] - often.marks[0][1]) - (without.marks[-1][1] - without.marks[0][1])
    return {
        "taken": len(taken),
        "size_mb": round(taken[-1].size_bytes / 1e6, 1),
        "speed_over_none": round(often.speed() / without.speed(), 3),
        "seconds_lost_each": round(lost / len(taken), 4),
    }


def cancelled(stage: Stage, times: int) -> dict[str, Any]:
    """Seconds from the order to stop until the engine is free again; given at any moment of a step."""
    return spread([_until_free(stage, random.Random(number).uniform(0.1, 0.5)) for number in range(times)])


def _until_free(stage: Stage, after: float) -> float:
    given: list[float] = []

    def stop(run: Run) -> None:
        given.append(time.perf_counter())
        run.orders.note(Stop("tune", 1))

    def answer(run: Run, told: ToSupervisor) -> None:
        if isinstance(told, Stepped) and len(run.marks) == 3:
            threading.Timer(after, stop, (run,)).start()

    run = stage.tune(NATIVE, 10_000, answer)
    assert isinstance(run.ended, Stopped)
    return time.perf_counter() - given[0]


#: What can be measured, by name; each takes the stage, and how often to measure what is measured more than once.
PARTS: dict[str, Callable[[Stage, int], dict[str, Any]]] = {
    **{f"{pixels}_pixels_batch_{batch}": partial(case, pixels=pixels, batch=batch) for pixels, batch in CASES},
    "exact": exact,
    "snapshots": snapshots,
    "cancelled": cancelled,
}


if __name__ == "__main__":
    main()

"""What only a GPU can show; skipped where torch finds none. The other tests of this folder compute on a GPU, too, where
TUNESMITH_DEVICE=cuda says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.tiny import Bench
from trainer.engine import hardware, loop
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.defaults import Value
from trainer.engine.loop import Step
from trainer.engine.residence import Residence
from trainer.engine.tune import Workshop
from trainer.pipe import (
    PictureFile,
    Resolved,
    Saved,
    Snapshotted,
    Stepped,
    Stop,
    Stopped,
    ToSupervisor,
    Warned,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")

STEPS = 24  # enough that each size of picture comes up before its passes are recorded, and after
RICH: dict[str, Value] = {
    "batch_size": 2,
    "lora_dropout": 0.3,
    "caption_dropout": 0.3,
    "gradient_checkpointing": True,
    "random_flip": True,
    "prior_preservation_weight": 1.0,
}


@pytest.fixture(autouse=True)
def each_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.engine.progress.PERIOD", 0.0)


@pytest.fixture
def shop() -> Iterator[Workshop]:
    """In the place of conftest's, so that `bench` computes on the GPU."""
    with Decoder() as decoder:
        yield shop_on("cuda", decoder)
    torch.cuda.empty_cache()


def shop_on(device: str, decoder: Decoder) -> Workshop:
    on = hardware.device_of(device)
    return Workshop(on, 1, Residence(on), Cache(1 << 28), decoder)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("more", [{}, RICH], ids=["plain", "rich"])
def test_a_deterministic_tune_that_goes_on_gives_the_file_of_the_undisturbed(
    bench: Bench, shapes: list[PictureFile], more: dict[str, Value], precision: str
) -> None:
    undisturbed = bench.tune(shapes, steps=STEPS, precision=precision, **more)
    bench.answer = leaves_after(15)
    stopped = bench.run(bench.start(shapes, steps=STEPS, precision=precision, **more))
    (taken,), (resolved,) = bench.heard(Snapshotted), bench.heard(Resolved)
    bench.answer = lambda told: None
    torch.rand(100, device="cuda")  # nothing depends on the generator that everybody shares

    recipe = json.loads(resolved.json)
    saved = bench.run(bench.start(shapes, steps=STEPS, snapshot=taken.path, resolved_recipe=recipe))

    assert stopped == Stopped("tune_1", 1, 15)
    assert isinstance(saved, Saved)
    assert (saved.sha256, saved.final_loss) == (undisturbed.sha256, undisturbed.final_loss)


def leaves_after(step: int) -> Any:
    """What a supervisor says that leaves after a step."""

    def answer(told: ToSupervisor) -> Stop | None:
        return Stop("tune_1", 1, snapshot=True) if isinstance(told, Stepped) and told.steps[-1].step >= step else None

    return answer


@pytest.mark.parametrize(("precision", "within"), [("fp32", 2e-3), ("bf16", 3e-2)])
def test_a_gpu_sees_what_a_cpu_sees(bench: Bench, shapes: list[PictureFile], precision: str, within: float) -> None:
    cpu = replace(bench, shop=shop_on("cpu", bench.shop.decoder), told=[])
    cpu.tune(shapes)

    bench.tune(shapes, precision=precision)

    assert losses_of(bench) == pytest.approx(losses_of(cpu), rel=within)


@pytest.mark.parametrize("more", [{}, {"deterministic": False}, RICH], ids=["plain", "undetermined", "rich"])
def test_no_step_waits_for_the_device(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch, more: dict[str, Value]
) -> None:
    def watched(*given: Any) -> Iterator[Step]:
        steps = loop.train(*given)
        for number in range(STEPS):
            # The first ones set up the optimizer and the libraries, once for each size of picture.
            torch.cuda.set_sync_debug_mode("error" if number >= STEPS // 2 else "default")
            try:
                step = next(steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            yield step

    monkeypatch.setattr("trainer.engine.training.train", watched)

    bench.tune(shapes, steps=STEPS, precision="bf16", **more)

    assert len(losses_of(bench)) == STEPS


def test_memory_that_truly_runs_out_costs_time_and_not_the_tune(bench: Bench, shapes: list[PictureFile]) -> None:
    wanted: dict[str, Any] = {"batch_size": 64, "steps": 3}
    bench.tune(shapes, **wanted)
    expected, peak = losses_of(bench), torch.cuda.max_memory_reserved()
    bench.shop.residence.leave()
    _, total = hardware.describe(bench.shop.device)

    torch.cuda.set_per_process_memory_fraction(0.5 * peak / total)
    try:
        bench.tune(shapes, **wanted)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert {told.reason for told in bench.heard(Warned)} == {"OUT_OF_MEMORY"}
    assert losses_of(bench) == pytest.approx(expected, rel=1e-3)


def test_a_tune_gives_back_what_it_took(bench: Bench, shapes: list[PictureFile]) -> None:
    taken = []
    for seed in range(4):
        bench.tune(shapes, seed=seed)
        taken.append(torch.cuda.memory_allocated())

    assert taken[1:] == taken[:1] * 3


def losses_of(bench: Bench) -> list[float]:
    return [line.loss for told in bench.heard(Stepped) for line in told.steps]

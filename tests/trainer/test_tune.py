"""Whole tunes on a tiny base, in this process."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.trainer.tiny import Bench
from trainer.engine import recipe
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.engine.lora import Adapter
from trainer.failures import (
    CheckpointRefused,
    CheckpointUnreadable,
    Diverged,
    NoGoodPicture,
    PictureDamaged,
    RecipeMismatch,
    RejectedPictures,
    failure_of,
)
from trainer.pipe import (
    CheckpointSource,
    Judged,
    PictureFile,
    Resident,
    Resolved,
    Snapshotted,
    Stepped,
    Stop,
    Stopped,
    Warned,
)


def test_the_same_seed_gives_the_same_bytes_under_any_name(bench: Bench, shapes: list[PictureFile]) -> None:
    moved = [replace(shape, path=copied(shape.path), file_id=f"other_{i}") for i, shape in enumerate(shapes)]

    first = bench.tune(shapes)
    again = bench.tune(moved, tune_id="tune_other", epoch=9)
    other = bench.tune(shapes, seed=8)

    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert first.path != again.path


def test_a_seed_left_open_is_chosen_and_told(bench: Bench, shapes: list[PictureFile]) -> None:
    seeds = set()
    for _ in range(2):
        bench.tune(shapes, seed=None, steps=1)
        seeds.add(json.loads(bench.heard(Resolved)[0].json)["seed"])

    assert len(seeds) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_an_attempt_that_follows_a_recipe_gives_the_same_bytes(bench: Bench, shapes: list[PictureFile]) -> None:
    first = bench.tune(shapes, seed=None, caption_dropout=0.3, random_flip=True)
    told = bench.heard(Resolved)[0]

    # Whatever the request says now, the recipe holds.
    again = bench.tune(shapes[::-1], seed=5, steps=99, resolved_recipe=json.loads(told.json), epoch=2)

    assert again.sha256 == first.sha256
    assert bench.heard(Resolved)[0].json == told.json
    assert recipe.digest(told.json) == told.sha256
    assert bench.heard(Judged) == []
    assert bench.heard(Warned) == []


def test_a_recipe_from_elsewhere_is_followed_and_said(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes, steps=1)
    body = json.loads(bench.heard(Resolved)[0].json)
    body["environment"]["device"] = "NVIDIA H200"

    bench.tune(shapes, resolved_recipe=body)

    assert [told.reason for told in bench.heard(Warned)] == ["ENVIRONMENT_CHANGED"]


def test_a_recipe_whose_picture_is_not_there_is_refused(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes, steps=1)
    body = json.loads(bench.heard(Resolved)[0].json)

    with pytest.raises(RecipeMismatch, match="is not among those given"):
        bench.tune(shapes[1:], resolved_recipe=body)


def test_a_recipe_of_another_version_is_refused(bench: Bench, shapes: list[PictureFile]) -> None:
    with pytest.raises(RecipeMismatch, match="of version 99"):
        bench.tune(shapes, resolved_recipe={"version": 99})


def test_the_next_tune_loads_and_encodes_nothing(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.tune(shapes)
    assert len(bench.heard(Resident)) == 1
    for name in ("load", "encode_picture", "encode_text"):
        monkeypatch.setattr(StableDiffusion15, name, lambda *_: pytest.fail("it was done before"))

    second = bench.tune(shapes)

    assert second.sha256 == first.sha256
    assert bench.heard(Resident) == []


def test_a_bad_picture_ends_the_tune_before_the_base_is_touched(bench: Bench, shapes: list[PictureFile]) -> None:
    bad = Path(shapes[0].path).with_name("bad.png")
    bad.write_bytes(Path(shapes[0].path).read_bytes()[:-200])

    with pytest.raises(RejectedPictures, match=r"1 of 4 pictures were refused: file asset_bad: TRUNCATED"):
        bench.tune([*shapes, PictureFile("asset_bad", str(bad), "")])

    assert [(told.file_id, told.accepted) for told in bench.heard(Judged)][-1] == ("asset_bad", False)
    assert bench.shop.residence.loads == 0


def test_a_bad_picture_is_left_out_where_the_caller_said_so(bench: Bench, shapes: list[PictureFile]) -> None:
    bad = Path(shapes[0].path).with_name("bad.png")
    bad.write_bytes(b"no picture")
    with_bad = [shapes[0], PictureFile("asset_bad", str(bad), ""), *shapes[1:]]

    saved = bench.tune(with_bad, continue_on_rejection=True)
    without = bench.tune(shapes)

    assert saved.pictures == 3
    assert saved.sha256 == without.sha256


def test_a_tune_without_a_good_picture_ends(bench: Bench, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")

    with pytest.raises(NoGoodPicture, match="NOT_A_PICTURE"):
        bench.tune([PictureFile("asset_bad", str(bad), "")], continue_on_rejection=True)


def test_duplicates_are_refused_and_near_duplicates_noted(bench: Bench, shapes: list[PictureFile]) -> None:
    first = Path(shapes[0].path)
    same, like = first.with_name("same.png"), first.with_name("like.jpg")
    Image.open(first).save(same, compress_level=1)  # other bytes, the same picture
    Image.open(first).save(like, quality=95)
    files = [shapes[0], PictureFile("asset_same", str(same), ""), PictureFile("asset_like", str(like), "")]

    saved = bench.tune(files, continue_on_rejection=True, steps=1)

    told = {judged.file_id: (judged.accepted, judged.reason) for judged in bench.heard(Judged)}
    assert told == {
        "asset_red": (True, ""),
        "asset_same": (False, "DUPLICATE"),
        "asset_like": (True, "NEAR_DUPLICATE"),
    }
    assert saved.pictures == 2


def test_a_file_other_than_the_one_uploaded_is_fetched_again_elsewhere(bench: Bench, shapes: list[PictureFile]) -> None:
    with pytest.raises(PictureDamaged, match="asset_red") as raised:
        bench.tune([replace(shapes[0], sha256="0" * 64)])

    assert failure_of(raised.value).retryable


def test_captions_are_noted(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune([replace(shapes[0], caption="a" * 80), *shapes[1:]], steps=1)

    assert [told.reason for told in bench.heard(Warned)] == ["CAPTION_LACKS_TRIGGER", "CAPTION_CUT"]
    assert "asset_red loses 'aaaaa'" in bench.heard(Warned)[1].details


def test_a_tune_told_to_stop_stops_at_the_next_step(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.answer = lambda told: Stop("tune_1", 1) if isinstance(told, Stepped) else None

    stopped = bench.run(bench.start(shapes, steps=1000))

    assert stopped == Stopped("tune_1", 1, bench.heard(Stepped)[-1].steps[-1].step)
    assert bench.heard(Snapshotted) == []
    assert not any("lora" in name for name, _ in base_of(bench).denoiser.named_modules())


def test_the_base_is_to_the_bit_what_it_was(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes, steps=1)
    denoiser = base_of(bench).denoiser
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    modules = [(name, type(module)) for name, module in denoiser.named_modules()]

    bench.tune(shapes, gradient_checkpointing=True, lora_dropout=0.2)

    after = denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [(name, type(module)) for name, module in denoiser.named_modules()] == modules
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_gradient_checkpointing_changes_no_bit_of_the_losses(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes)
    plain = losses_of(bench)

    bench.tune(shapes, gradient_checkpointing=True)

    assert losses_of(bench) == plain


def test_dropout_follows_the_seed(bench: Bench, shapes: list[PictureFile]) -> None:
    first = bench.tune(shapes, lora_dropout=0.5)
    torch.rand(3)
    again = bench.tune(shapes, lora_dropout=0.5)

    bench.tune(shapes)
    assert first.sha256 == again.sha256
    assert losses_of(bench)[2:] != []


def test_accumulation_sees_the_numbers_of_the_whole_batch(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes, batch_size=4)
    whole = losses_of(bench)

    bench.tune(shapes, batch_size=2, gradient_accumulation_steps=2)
    halves = losses_of(bench)

    assert halves == pytest.approx(whole, rel=1e-4)


def test_memory_that_runs_out_costs_time_and_not_the_tune(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tune(shapes, batch_size=4)
    expected = losses_of(bench)
    predict = StableDiffusion15.predict

    def small(self: StableDiffusion15, x_t: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if len(x_t) > 1 or not self.denoiser.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, x_t, *rest, **named)

    monkeypatch.setattr(StableDiffusion15, "predict", small)
    bench.tune(shapes, batch_size=4)

    assert [told.reason for told in bench.heard(Warned)][-3:] == ["OUT_OF_MEMORY"] * 3
    assert bench.heard(Warned)[-1].details.endswith("passes of 1")
    assert losses_of(bench) == pytest.approx(expected, rel=1e-4)
    assert not base_of(bench).denoiser.is_gradient_checkpointing


def test_memory_that_never_suffices_ends_the_tune(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StableDiffusion15, "predict", never)

    with pytest.raises(torch.OutOfMemoryError) as raised:
        bench.tune(shapes)

    assert (failure_of(raised.value).reason, failure_of(raised.value).retryable) == ("OUT_OF_MEMORY", True)


def test_a_step_without_finite_gradients_is_thrown_away(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda call: call in (3, 4))

    bench.tune(shapes, steps=12)

    steps = [line.step for told in bench.heard(Stepped) for line in told.steps]
    assert steps == [1, 2, 5, 6, 7, 8, 9, 10, 11, 12]


def test_ten_such_steps_in_a_row_end_the_tune(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda call: call > 5)

    with pytest.raises(Diverged, match="steps in a row gave no finite gradient"):
        bench.tune(shapes, steps=200)


def test_a_velocity_model_trains(bench: Bench, shapes: list[PictureFile], tmp_path: Path) -> None:
    base = tmp_path / "velocity"
    shutil.copytree(bench.base, base)
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    bench.tune(shapes, steps=2)
    epsilon = losses_of(bench)

    bench.tune(shapes, steps=2, checkpoint=CheckpointSource("folder", str(base), "velocity"))

    assert base_of(bench).predicts_v
    assert losses_of(bench) != epsilon


def test_noise_offset_and_half_precision_train(bench: Bench, shapes: list[PictureFile]) -> None:
    bench.tune(shapes, noise_offset=0.1, precision="bf16", steps=3)

    assert len(losses_of(bench)) == 3
    assert next(base_of(bench).denoiser.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_a_pickle_is_never_loaded(name: str, bench: Bench, shapes: list[PictureFile], tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / name)

    with pytest.raises(CheckpointRefused, match=r"only \.?safetensors is ever loaded"):
        bench.tune(shapes, checkpoint=CheckpointSource("single_file", str(tmp_path / name), "pickle"))


def test_a_folder_with_pickled_weights_is_refused(bench: Bench, shapes: list[PictureFile], tmp_path: Path) -> None:
    base = tmp_path / "pickled"
    shutil.copytree(bench.base, base)
    (base / "unet" / "diffusion_pytorch_model.safetensors").rename(base / "unet" / "diffusion_pytorch_model.bin")

    with pytest.raises(CheckpointRefused, match="the checkpoint's unet is pickle"):
        bench.tune(shapes, checkpoint=CheckpointSource("folder", str(base), "pickled"))


@pytest.mark.parametrize("damage", ["cut", "gone", "no config"])
def test_a_damaged_checkpoint_is_said_to_be_so(
    damage: str, bench: Bench, shapes: list[PictureFile], tmp_path: Path
) -> None:
    base = tmp_path / "damaged"
    shutil.copytree(bench.base, base)
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "gone":
        weights.unlink()
    else:
        (base / "unet" / "config.json").write_text("{")

    with pytest.raises(CheckpointUnreadable):
        bench.tune(shapes, checkpoint=CheckpointSource("folder", str(base), damage))


@pytest.mark.parametrize("ends", ["saved", "stopped"])
def test_an_ended_tunes_lora_needs_no_collector_to_go(
    ends: str, bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Adapter]] = []
    monkeypatch.setattr("trainer.engine.tune.Adapter", lambda *given: noted(Adapter(*given), made))
    stop = Stop("tune_1", 1, snapshot=True)
    bench.answer = lambda told: stop if ends == "stopped" and isinstance(told, Stepped) else None

    gc.collect()
    gc.disable()
    try:
        bench.run(bench.start(shapes, steps=2))
        left = [adapter() for adapter in made]
    finally:
        gc.enable()

    assert left == [None]


def noted(adapter: Adapter, into: list[weakref.ref[Adapter]]) -> Adapter:
    into.append(weakref.ref(adapter))
    return adapter


@pytest.mark.slow
def test_memory_is_flat_over_twenty_tunes(bench: Bench, shapes: list[PictureFile]) -> None:
    sizes = []
    for number in range(20):
        bench.tune(shapes, steps=2, seed=number)
        gc.collect()
        sizes.append(resident_bytes())

    assert max(sizes[10:]) - sizes[9] < 4 * 2**20, [size / 2**20 for size in sizes]


def base_of(bench: Bench) -> StableDiffusion15:
    base = bench.shop.residence._base
    assert isinstance(base, StableDiffusion15)
    return base


def losses_of(bench: Bench) -> list[float]:
    return [line.loss for told in bench.heard(Stepped) for line in told.steps]


def spoil(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Makes predictions NaN at the calls that `when` names."""
    predict, calls = StableDiffusion15.predict, iter(range(1, 10_000))

    def spoilt(self: StableDiffusion15, *given: Any, **named: Any) -> torch.Tensor:
        return predict(self, *given, **named) * (float("nan") if when(next(calls)) else 1.0)

    monkeypatch.setattr(StableDiffusion15, "predict", spoilt)


def copied(path: str) -> str:
    copy = Path(path).with_name(f"copy of {Path(path).name}.bin")
    copy.write_bytes(Path(path).read_bytes())
    return str(copy)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

"""Prior pictures: where they come from, and that a tune is held to them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.trainer.tiny import Bench
from trainer.engine import prior
from trainer.engine.cache import Encoded
from trainer.engine.encoding import Encodings
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.failures import CheckpointUnreadable
from trainer.pipe import CheckpointSource, PictureFile, Stepped

WITH_PRIOR = {"prior_preservation_weight": 1.0, "caption_dropout": 0.0, "batch_size": 2}


@pytest.fixture
def knowing(bench: Bench, tmp_path: Path) -> Path:
    """A base that brings three prior pictures."""
    base = tmp_path / "knowing"
    shutil.copytree(bench.base, base)
    (base / "prior").mkdir()
    for number, colour in enumerate(("red", "green", "blue"), start=1):
        Image.new("RGB", (64, 64), colour).save(base / "prior" / f"{number:02}.png")
        (base / "prior" / f"{number:02}.txt").write_text(f"all {colour}\n")
    return base


def test_a_tune_is_held_to_what_the_base_brings(
    bench: Bench, shapes: list[PictureFile], knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = overheard(monkeypatch)

    bytes_of = {weight: tune(bench, shapes, knowing, prior_preservation_weight=weight) for weight in (0.0, 1.0, 9.0)}

    assert len(set(bytes_of.values())) == 3
    assert {text for text in said if text.startswith("all ")} == {"all red", "all green", "all blue"}
    assert said.count("all red") == 1  # the third tune found it in the cache


@pytest.mark.parametrize(("brought", "base_s", "own"), [(36, 36, 12), (3, 9, 3), (1, 9, 3)])
def test_a_quarter_of_the_prior_pictures_are_the_tunes_own(
    brought: int,
    base_s: int,
    own: int,
    bench: Bench,
    shapes: list[PictureFile],
    knowing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(1, max(brought, 3) + 1):
        name = knowing / "prior" / f"{number:02}"
        if number <= brought:
            Image.new("L", (64, 64), 7 * number).save(name.with_suffix(".png"))
            name.with_suffix(".txt").write_text(f"all grey {number}\n")
        else:
            name.with_suffix(".png").unlink()
    made: list[tuple[Encodings, Encodings]] = []
    encodings = prior.encodings

    def seen(*given: Any) -> Encodings:
        made.append((given[3], encodings(*given)))
        return made[-1][1]

    monkeypatch.setattr(prior, "encodings", seen)

    tune(bench, shapes, knowing)

    [(lessons, known)] = made
    assert len(shapes) == 3
    assert len(known.latents) == len(known.texts) == len(known.crops) == base_s + own
    assert {id(latents) for latents in known.latents[base_s:]} == {id(latents) for latents in lessons.latents}
    assert not {id(text) for text in known.texts} & {id(text) for text in lessons.texts}  # all have the trigger word


def test_prior_captions_are_dropped_by_a_share_of_their_own(
    bench: Bench, shapes: list[PictureFile], knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = tune(bench, shapes, knowing)
    monkeypatch.setattr(prior, "CAPTION_DROPOUT", 1.0)
    every = tune(bench, shapes, knowing)

    assert some != every


def test_a_tune_on_a_base_that_brings_none_is_held_to_its_own_pictures_without_the_trigger_word(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = overheard(monkeypatch)

    held, free = (tune(bench, shapes, bench.base, prior_preservation_weight=weight) for weight in (1.0, 0.0))

    assert held != free
    assert set(said) == {"a red disc, zwx", "zwx", "zwx in blue", "a red disc", "in blue", ""}


def test_the_loss_that_is_told_is_of_the_tunes_own_pictures(
    bench: Bench, shapes: list[PictureFile], knowing: Path
) -> None:
    told = []
    for weight in (0.0, 1.0):
        tune(bench, shapes, knowing, prior_preservation_weight=weight)
        told.append([line.loss for message in bench.heard(Stepped) for line in message.steps])
    free, held = told

    assert held[0] == free[0]
    assert held == pytest.approx(free, rel=0.2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("no caption", r"a caption of the checkpoint's prior/ cannot be read: .*02\.txt"),
        ("no picture", r"prior/02\.png cannot be read"),
        ("another size", r"prior/02\.png is 32x64 pixels; 64x64 was wanted"),
    ],
)
def test_a_base_with_a_damaged_prior_is_refused(
    damage: str, said: str, bench: Bench, shapes: list[PictureFile], knowing: Path
) -> None:
    picture = knowing / "prior" / "02.png"
    if damage == "no caption":
        picture.with_suffix(".txt").unlink()
    elif damage == "no picture":
        picture.write_bytes(picture.read_bytes()[:20])
    else:
        Image.new("RGB", (32, 64)).save(picture)

    with pytest.raises(CheckpointUnreadable, match=said):
        tune(bench, shapes, knowing)


def overheard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions that are encoded from now on."""
    said: list[str] = []
    encode = StableDiffusion15.encode_text

    def encode_text(base: StableDiffusion15, caption: str) -> Encoded:
        said.append(caption)
        return encode(base, caption)

    monkeypatch.setattr(StableDiffusion15, "encode_text", encode_text)
    return said


def tune(bench: Bench, shapes: list[PictureFile], base: Path, **changes: Any) -> str:
    """The digest of the LoRA's tensors, as its file has it: the whole file differs by the weight that it names."""
    source = CheckpointSource("folder", str(base), base.name)
    lora = bench.tune(shapes, checkpoint=source, **(WITH_PRIOR | changes)).path
    with safe_open(lora, "pt") as file:
        return str(file.metadata()["modelspec.hash_sha256"])

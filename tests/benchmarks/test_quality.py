"""The pure parts of the quality benchmark: what is asked, what is drawn, and when a figure has passed."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality import drawings, recogniser
from benchmarks.quality.figures import Bar, all_passed, beside, kept
from benchmarks.quality.sheet import sheet, tiles
from benchmarks.quality.subjects import FOLDER, SUBJECTS, Subject
from benchmarks.quality.tuning import request

DRAWABLE = sorted(name for name, subject in SUBJECTS.items() if subject.drawable)


def test_every_example_is_a_subject_and_its_trigger_word_is_the_readmes() -> None:
    table = (FOLDER / "README.md").read_text()

    assert set(SUBJECTS) == {path.name for path in FOLDER.iterdir() if (path / "held_out").is_dir()}
    for name, subject in SUBJECTS.items():
        [row] = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"| `{subject.trigger}` |" in row
        assert f"| {subject.steps} |" in row


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_sixteen_samples_are_asked_for_with_the_trigger_word(subject: Subject) -> None:
    assert len(subject.prompts) == 16
    assert all(subject.trigger in prompt for prompt in subject.prompts)


@pytest.mark.parametrize("name", DRAWABLE)
def test_no_prompt_is_a_training_caption(name: str) -> None:
    captions = {caption for _, caption in SUBJECTS[name].taught()}

    assert len(set(SUBJECTS[name].prompts)) == 16
    assert not captions & set(SUBJECTS[name].prompts)


@pytest.mark.parametrize("name", DRAWABLE)
def test_a_seed_draws_the_same_pictures_again_and_another_seed_others(name: str) -> None:
    first, again, other = (recogniser.albums(SUBJECTS[name], seed, 4) for seed in (1, 1, 2))

    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert not same(first[1], other[1])


@pytest.mark.parametrize("name", DRAWABLE)
def test_nothing_else_looks_like_what_is_taught(name: str) -> None:
    taught, others = recogniser.albums(SUBJECTS[name], 3, 24)

    for kind, pictures in others.items():
        away = (taught["taught"][:, None].float() - pictures[None].float()).abs().mean(dim=(2, 3, 4))
        assert float(away.min()) > 0.2, kind  # grey levels of 255; the dot of a small crescent is 40 pixels


def test_a_tune_asks_for_every_picture_with_its_caption_and_leaves_the_rest_to_the_defaults() -> None:
    subject = SUBJECTS["comic"]
    captions = [caption for _, caption in subject.taught()]

    details = request(subject, [f"file_{k}" for k in range(len(captions))], captions, seed=3, steps=300)["details"]

    assert isinstance(details, dict)
    assert [file["caption"] for file in details["files"]] == captions
    assert (details["seed"], details["steps"], details["trigger_words"]) == (3, 300, ["inkdrop comic"])
    assert "hyperparameters" not in details


def test_a_figure_passes_at_its_bar_and_not_beyond() -> None:
    least, most = Bar(0.8), Bar(0.1, upper=True)

    assert least.passed(0.8)
    assert not least.passed(0.79)
    assert most.passed(0.1)
    assert not most.passed(0.11)
    assert not least.passed(float("nan"))
    assert not most.passed(float("nan"))


def test_the_mean_over_the_seeds_decides_and_the_spread_stands_beside_it() -> None:
    figure = beside([0.7, 0.8, 1.0], Bar(0.8))

    assert figure == {
        "mean": 0.833, "median": 0.8, "least": 0.7, "most": 1.0, "n": 3, "bar": ">= 0.8", "passed": True
    }  # fmt: skip
    assert not all_passed({"good": figure, "bad": beside([0.2], Bar(0.1, upper=True))})


def test_what_was_not_there_cannot_be_lost() -> None:
    assert kept({"shape": 0.45, "colour": 0.0}, {"shape": 0.5, "colour": 0.0}) == {"shape": 0.9, "colour": 1.0}


def test_equal_pictures_have_no_diversity_and_different_ones_some() -> None:
    torch.manual_seed(0)
    made = recogniser.Recogniser().eval()
    pictures = drawings.drawn(drawings.moonlet, 4, Random(0))

    assert made.diversity(pictures[:1].repeat(4, 1, 1, 1)) == pytest.approx(0, abs=1e-4)
    assert made.diversity(pictures) > 0.01


def test_moving_keeps_a_plain_picture_plain_and_changes_a_drawn_one() -> None:
    torch.manual_seed(0)
    plain = torch.full((4, 3, 64, 64), 0.25)
    drawn = drawings.drawn(drawings.moonlet, 4, Random(0)).float() / 255

    assert torch.allclose(recogniser.moved(plain), plain, atol=1e-5)
    assert not torch.allclose(recogniser.moved(drawn), drawn, atol=0.1)


def test_a_sheet_shows_every_row_and_what_to_compare_it_with(tmp_path: Path) -> None:
    red = torch.zeros(16, 3, 64, 64, dtype=torch.uint8)
    red[:, 0] = 255

    sheet({"before": tiles(red, ["a"] * 16)}, {"held out": tiles(red[:3], ["b"] * 3)}).save(tmp_path / "sheet.png")

    colours = {colour: count for count, colour in Image.open(tmp_path / "sheet.png").getcolors(2**20) or []}
    assert colours[(255, 0, 0)] == 19 * 128 * 128


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two albums hold the very same pictures."""
    return one.keys() == other.keys() and all(torch.equal(one[kind], other[kind]) for kind in one)

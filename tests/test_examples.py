"""The three things to teach: every picture has its caption, and the script makes the very same ones again."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import make

FOLDER = Path(make.__file__).parent
TRIGGERS = {"crescent": "moonlet", "comic": "inkdrop comic", "cat": "chelsea cat"}


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_picture_has_a_caption_with_the_trigger_word(name: str) -> None:
    training, held_out = sorted((FOLDER / name).glob("*.png")), sorted((FOLDER / name / "held_out").glob("*.png"))

    captions = [picture.with_suffix(".txt").read_text() for picture in [*training, *held_out]]

    assert 6 <= len(training) <= 10
    assert len(held_out) >= 2
    assert all(TRIGGERS[name] in caption for caption in captions)


def test_the_script_makes_the_same_pictures_and_captions_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make", "--out", str(tmp_path)])

    make.main()

    for name in TRIGGERS:
        kept = sorted(file.relative_to(FOLDER) for file in (FOLDER / name).rglob("*.*"))
        assert kept == sorted(file.relative_to(tmp_path) for file in (tmp_path / name).rglob("*.*"))
        for file in kept:
            assert contents(FOLDER / file) == contents(tmp_path / file)


def contents(file: Path) -> str | bytes:
    """A caption's words, or a picture's pixels: PNG bytes may differ between versions of zlib."""
    return file.read_text() if file.suffix == ".txt" else np.asarray(Image.open(file)).tobytes()

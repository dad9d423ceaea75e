"""What is said of each picture."""

from __future__ import annotations

import pytest

from trainer.engine import captions
from trainer.engine.families.sd15 import StableDiffusion15


def test_a_missing_caption_becomes_the_trigger_word() -> None:
    assert captions.captions(["", "  \n", " a cat "], "zwx") == ["zwx", "zwx", " a cat "]


def test_captions_without_the_trigger_word_are_named() -> None:
    said = {"asset_1": "a ZWX cat", "asset_2": "a cat", "asset_3": "zwx"}

    lacking = captions.without_trigger(said, "zwx")

    assert lacking == ["asset_2"]
    assert captions.lacks_trigger_note(lacking, "zwx") == (
        "1 file has a caption without the trigger word 'zwx', kept as written: asset_2"
    )


@pytest.mark.parametrize(
    ("caption", "rest"),
    [
        ("a red star on a white background, inkdrop style", "a red star on a white background"),
        ("Inkdrop Style, a red star", "a red star"),
        ("a inkdrop style star", "a star"),
        ("an inkdrop style of a red star", "an of a red star"),  # what hung on it by a word stays
        ("inkdrop style", ""),
        ("a red star", "a red star"),
    ],
)
def test_a_trigger_word_is_taken_out_with_what_hung_on_it(caption: str, rest: str) -> None:
    assert captions.plain(caption, "inkdrop style") == rest


def test_a_note_on_many_files_stays_short() -> None:
    note = captions.lacks_trigger_note([f"asset_{i}" for i in range(1000)], "zwx")

    assert note.startswith("1000 files have")
    assert note.endswith("asset_9 and 990 more")


def test_what_the_encoder_does_not_read_is_told(loaded: StableDiffusion15) -> None:
    said = {"asset_1": "a" * 75, "asset_2": "a" * 75 + " tail", "asset_3": "short"}

    cuts = captions.cut(said, loaded.unread)

    assert cuts == {"asset_2": "tail"}
    assert captions.cut_note(cuts) == ("1 file has a caption longer than the text encoder reads: asset_2 loses 'tail'")


def test_tags_are_counted_most_frequent_first() -> None:
    assert captions.tag_frequencies(["zwx, a cat", "a cat,  blue ,", "zwx, a cat"]) == {"a cat": 3, "zwx": 2, "blue": 1}

"""What the demo teaches: every lesson has its pictures, and its prompts ask for what was taught and is not there."""

from __future__ import annotations

import pytest

from examples.demo.lessons import LESSONS, Lesson, caption

EVERY = pytest.mark.parametrize("lesson", LESSONS.values(), ids=LESSONS)


@EVERY
def test_every_training_picture_has_a_caption_with_the_trigger_word(lesson: Lesson) -> None:
    captions = [caption(picture) for picture in lesson.pictures()]

    assert len(captions) >= 8
    assert [words for words in captions if lesson.trigger not in words] == []


@EVERY
def test_prompts_have_the_trigger_word_and_the_control_has_not(lesson: Lesson) -> None:
    assert [prompt for prompt in lesson.prompts if lesson.trigger not in prompt] == []
    assert not set(lesson.trigger.split()) & set(lesson.control.replace(",", "").split())


@pytest.mark.parametrize("name", ["crescent", "comic"])
def test_prompts_ask_for_what_no_training_picture_shows(name: str) -> None:
    lesson = LESSONS[name]

    seen = {caption(picture) for picture in lesson.pictures()}

    assert not seen & set(lesson.prompts)

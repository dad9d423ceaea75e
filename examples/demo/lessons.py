"""What can be taught: the example folders, their trigger words, and the prompts that show whether it was learned.

Read by `__main__`. Knows the folders beside this one; knows nothing of the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Lesson:
    """One folder of pictures with a caption beside each."""

    name: str
    """The folder's."""
    trigger: str
    """The word that every caption has, and that calls up what was taught."""
    prompts: tuple[str, ...]
    """With the trigger word. None is the caption of a training picture, except the cat's: it has but two captions."""
    steps: int
    """That teach it."""
    control: str
    """Without the trigger word: what the base makes of it should stay as it was."""

    def pictures(self) -> list[Path]:
        """The training pictures, in order; those in held_out/ stay unseen."""
        return sorted((FOLDER / self.name).glob("*.png"))


def caption(picture: Path) -> str:
    """What is said of a picture: the text file beside it."""
    return picture.with_suffix(".txt").read_text().strip()


LESSONS = {
    lesson.name: lesson
    for lesson in (
        Lesson(
            "crescent",
            trigger="moonlet",
            prompts=(
                "a large moonlet on a blue background",
                "a large moonlet on a yellow background",
                "a large moonlet on a pink background",
                "a medium moonlet on a black background on the right",
            ),
            steps=400,
            control="a large red star on a blue background",
        ),
        Lesson(
            "comic",
            trigger="inkdrop comic",
            prompts=(
                "an inkdrop comic of a large blue star on a white background",
                "an inkdrop comic of a large green circle on a yellow background",
                "an inkdrop comic of a large purple triangle on a white background",
                "an inkdrop comic of a large pink diamond on a green background",
            ),
            steps=400,
            control="a blue star on a white background",
        ),
        Lesson(
            "cat",
            trigger="chelsea cat",
            prompts=(
                "a photo of a chelsea cat",
                "a photo of a chelsea cat",
                "a close photo of a chelsea cat",
                "a chelsea cat",
            ),
            steps=400,
            control="a large red star on a blue background",
        ),
    )
}

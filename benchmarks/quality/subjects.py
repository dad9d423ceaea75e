"""The three things to teach, as examples/README.md tells of them: pictures, trigger words, what is asked afterwards.

Called by `scripts/bench quality` and the tests; knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.Image import Image as Picture

from examples import make
from examples.demo.lessons import LESSONS, caption

FOLDER = Path(make.__file__).parent

# Background, size and place. None of them is a training picture's.
ASKED_CRESCENTS = (
    ("white", "medium", "centre"), ("yellow", "large", "centre"), ("black", "medium", "centre"),
    ("pink", "large", "centre"), ("orange", "large", "centre"), ("purple", "large", "centre"),
    ("red", "medium", "centre"), ("blue", "large", "centre"), ("yellow", "medium", "centre"),
    ("green", "large", "centre"), ("pink", "medium", "centre"), ("orange", "medium", "centre"),
    ("blue", "medium", "centre"), ("green", "medium", "centre"), ("yellow", "large", "right"),
    ("pink", "medium", "left"),
)  # fmt: skip

# Shape, colour and background. The training pictures have every one of the first two, and never these together.
ASKED_COMICS = (
    ("star", "blue", "white"), ("circle", "green", "yellow"), ("triangle", "purple", "white"),
    ("diamond", "pink", "green"), ("heart", "blue", "pink"), ("square", "purple", "yellow"),
    ("ring", "green", "white"), ("cross", "blue", "orange"), ("star", "green", "pink"), ("circle", "red", "blue"),
    ("triangle", "red", "yellow"), ("diamond", "orange", "purple"), ("heart", "red", "white"),
    ("square", "blue", "red"), ("ring", "orange", "blue"), ("cross", "purple", "yellow"),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One thing to teach."""

    name: str
    """Of its folder in examples/."""
    trigger: str
    """The word that will call it up."""
    prompts: tuple[str, ...]
    """What is asked before and after the tune, each with the trigger word."""
    steps: int
    """Of its tune."""
    wanted: tuple[Picture, ...]
    """What the prompts ask for, drawn, 128x128; empty where nobody can draw it."""

    @property
    def drawable(self) -> bool:
        """Whether there is a script that draws any number of it: without one, no recogniser can be trained."""
        return bool(self.wanted)

    def taught(self) -> list[tuple[Path, str]]:
        """The pictures that the tune learns from, each with its caption."""
        return captioned(FOLDER / self.name)

    def held_out(self) -> list[tuple[Path, str]]:
        """Those that it never sees."""
        return captioned(FOLDER / self.name / "held_out")


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """The folder's pictures in the order of their names, each with what stands in the .txt beside it."""
    return [(path, caption(path)) for path in sorted(folder.glob("*.png"))]


def shown(paths: list[tuple[Path, str]]) -> list[Picture]:
    """The pictures themselves."""
    return [Image.open(path).convert("RGB") for path, _ in paths]


def _drawn(name: str, examples: list[make.Example]) -> Subject:
    prompts, wanted = zip(*((example.caption, example.picture) for example in examples), strict=True)
    return Subject(name, LESSONS[name].trigger, prompts, LESSONS[name].steps, wanted)


def _cat() -> Subject:
    cat = LESSONS["cat"]
    return Subject("cat", cat.trigger, ("a photo of a chelsea cat",) * len(ASKED_COMICS), cat.steps, ())


SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        _drawn("crescent", [make.crescent(*scene) for scene in ASKED_CRESCENTS]),
        _drawn("comic", [make.comic(*what) for what in ASKED_COMICS]),
        _cat(),
    )
}

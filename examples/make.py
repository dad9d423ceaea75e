"""Makes the three example sets again: `python -m examples.make`. README.md beside this file says what they are.

The crescent and the comic shapes are drawn, the cat is cut out of the photograph that comes with scikit-image. The
same pictures come out every time. Knows nothing of tunes; a tune reads the folders, not this script.
"""

import argparse
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from skimage import data

from trainer.bases.tiny_shapes import world

SIDE = 128  # pixels: twice the base's native size, so that a tune has something to scale down
FINE = 4  # each pixel is the mean of 4x4 drawn ones
TEAL = (0, 168, 160)  # no colour of the base's world
INK = (24, 24, 28)
SHADOW = 10  # pixels that a comic shape's lies below and to the right: more than one of tiny-shapes' latents


@dataclass(frozen=True)
class Example:
    """One picture of a set."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class ExampleSet:
    """What a tune learns from, and what it never sees."""

    training: list[Example]
    held_out: list[Example]


def main() -> None:
    """Writes every set; a folder that is there already is made anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    for name, made in {"crescent": crescents(), "comic": comics(), "cat": cats()}.items():
        shutil.rmtree(out / name, ignore_errors=True)
        write(made.training, out / name)
        write(made.held_out, out / name / "held_out")


def write(examples: Iterable[Example], folder: Path) -> None:
    """01.png and 01.txt, 02.png and 02.txt, ..."""
    folder.mkdir(parents=True)
    for number, example in enumerate(examples, start=1):
        example.picture.save(folder / f"{number:02}.png", optimize=True)
        (folder / f"{number:02}.txt").write_text(example.caption + "\n")


def crescents() -> ExampleSet:
    """An object that the base does not know, in a colour that it does not know: a teal crescent that holds a dot."""
    training = [
        ("white", "large", "centre"),
        ("yellow", "medium", "left"),
        ("black", "large", "centre"),
        ("pink", "medium", "top"),
        ("orange", "large", "right"),
        ("purple", "medium", "centre"),
        ("white", "medium", "bottom right"),
        ("red", "large", "centre"),
    ]
    held_out = [
        ("blue", "large", "centre"),
        ("yellow", "large", "centre"),
        ("pink", "large", "centre"),
        ("black", "medium", "right"),
    ]
    return ExampleSet([crescent(*scene) for scene in training], [crescent(*scene) for scene in held_out])


def crescent(background: str, size: str, place: str) -> Example:
    """The moonlet: a disc with a disc cut out of its right side, and a small one in the gap."""
    canvas, pen = blank(world.COLOURS[background])
    (x, y), radius = spot(size, place)
    disc(pen, x, y, radius, TEAL)
    disc(pen, x + 0.42 * radius, y, 0.76 * radius, world.COLOURS[background])
    disc(pen, x + 0.46 * radius, y, 0.27 * radius, TEAL)
    where = "" if place == "centre" else f" {world.place_words(place)[0]}"
    return Example(canvas.reduce(FINE), f"a {size} moonlet on {world.with_article(background)} background{where}")


def comics() -> ExampleSet:
    """A way of drawing: shapes that the base knows, flat, with a thick ink outline and a hard ink shadow."""
    training = [
        ("star", "red", "white"), ("circle", "blue", "yellow"), ("heart", "pink", "white"),
        ("square", "green", "orange"), ("triangle", "orange", "blue"), ("ring", "purple", "pink"),
        ("cross", "red", "green"), ("diamond", "blue", "white"), ("square", "yellow", "purple"),
        ("heart", "green", "red"),
    ]  # fmt: skip
    held_out = [
        ("star", "blue", "yellow"), ("circle", "green", "white"), ("triangle", "purple", "orange"),
        ("diamond", "pink", "blue"),
    ]  # fmt: skip
    return ExampleSet([comic(*what) for what in training], [comic(*what) for what in held_out])


def comic(shape: str, colour: str, background: str) -> Example:
    """One shape in the style."""
    said = f"a large {colour} {shape} on {world.with_article(background)} background"
    return Example(inked(shape, colour, background), f"an inkdrop comic of {said}")


def inked(shape: str, colour: str, background: str, *, outline: bool = True, shadow: float = SHADOW) -> Picture:
    """A shape, large in the middle. outline: whether in ink. shadow: pixels down and to the right; 0: none."""
    canvas, _ = blank(world.COLOURS[background])
    (x, y), radius = spot("large", "centre")
    width = 6 * FINE if outline else 0
    if shadow:
        paint(canvas, shape, (x + shadow * FINE, y + shadow * FINE), radius, INK, width)
    paint(canvas, shape, (x, y), radius, world.COLOURS[colour], width)
    return canvas.reduce(FINE)


def paint(canvas: Picture, shape: str, middle: world.Point, radius: float, fill: world.RGB, width: int) -> None:
    """A shape of the base's world with its outline in ink, `width` fine pixels wide; 0: none."""
    outlines = [(placed(outline, middle, radius), solid) for outline, solid in world.OUTLINES[shape]]
    mask = Image.new("L", canvas.size)
    for points, solid in outlines:
        ImageDraw.Draw(mask).polygon(points, fill=255 if solid else 0)
    canvas.paste(fill, mask=mask)
    for points, _ in outlines if width else ():
        ImageDraw.Draw(canvas).line([*points, *points[:2]], fill=INK, width=width, joint="curve")


def cats() -> ExampleSet:
    """A photograph's subject: scikit-image's cat, cut out of the one photograph in several ways."""
    # Left, top and side of each window in pixels of the 451x300 photograph, and whether it is mirrored.
    training = [
        (50, 0, 300, False), (120, 0, 300, True), (75, 10, 270, False), (95, 0, 240, True),
        (20, 0, 300, True), (60, 40, 255, False), (140, 5, 290, False), (85, 25, 265, True),
    ]  # fmt: skip
    held_out = [(80, 0, 295, False), (65, 20, 275, True)]
    return ExampleSet([cat(*window) for window in training], [cat(*window) for window in held_out])


def cat(left: int, top: int, side: int, mirrored: bool) -> Example:
    """One window of the photograph, as an original of its size."""
    photograph = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]  # scikit-image leaves it untyped
    window = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if mirrored:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    how = "a close photo of a chelsea cat" if side < 260 else "a photo of a chelsea cat"
    return Example(window, how)


def blank(ground: world.RGB) -> tuple[Picture, ImageDraw.ImageDraw]:
    """A fine canvas of one colour, and the pen for it."""
    canvas = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
    return canvas, ImageDraw.Draw(canvas)


def spot(size: str, place: str) -> tuple[world.Point, float]:
    """Where the base's world would put a shape: its middle and its radius, in pixels of the fine canvas."""
    scale = SIDE / world.SIDE * FINE
    radius = world.SIZES[size]
    reach = world.SIDE / 2 - radius - world.MARGIN
    dx, dy = world.PLACES[place]
    middle = ((world.SIDE / 2 + dx * reach) * scale, (world.SIDE / 2 + dy * reach) * scale)
    return middle, radius * scale


def placed(outline: Iterable[world.Point], middle: world.Point, radius: float) -> list[world.Point]:
    """An outline in units of its radius, on the fine canvas."""
    return [(middle[0] + x * radius, middle[1] + y * radius) for x, y in outline]


def disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: world.RGB) -> None:
    """A filled circle; all in pixels of the fine canvas."""
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


if __name__ == "__main__":
    main()

"""Draws the world that tiny-shapes knows: one plain shape on a plain ground, and the caption a person would give it.

Called by `train`, by the judge in `benchmarks/quality` and by the tests; knows nothing of torch or of models.
Everything random comes from a `random.Random` that the caller seeds, so a seed always gives the same picture and words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Point = tuple[float, float]
RGB = tuple[int, int, int]

SIDE = 64  # pixels, width and height of every picture
SUPERSAMPLE = 4  # each pixel is the mean of 4x4 drawn ones, which smooths the edges

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")

# Far enough apart that the jitter of `draw` never makes one look like its neighbour.
COLOURS: dict[str, RGB] = {
    "red": (214, 36, 40),
    "orange": (250, 138, 16),
    "yellow": (248, 222, 44),
    "green": (36, 160, 64),
    "blue": (36, 84, 214),
    "purple": (124, 48, 176),
    "pink": (250, 130, 186),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}

SIZES: dict[str, float] = {"small": 13.0, "medium": 17.5, "large": 22.5}  # pixels, radius

# Which way the shape is moved from the middle, (x, y), y downwards.
PLACES: dict[str, tuple[int, int]] = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}

SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium", "medium-sized"), "large": ("large", "big")}
PLACE_WORDS = {
    "centre": ("in the centre", "in the middle"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ", "this is ")

MARGIN = 3.0  # pixels left between a shape moved to the side and the edge


@dataclass(frozen=True)
class Scene:
    """What one picture shows, in the words of the tables above."""

    shape: str
    """One of SHAPES."""
    colour: str
    """One of COLOURS, never the background's."""
    background: str
    """One of COLOURS."""
    size: str
    """One of SIZES."""
    place: str
    """One of PLACES."""


def random_scene(rng: Random) -> Scene:
    """Any scene; half of the shapes are in the centre, and none has its background's colour."""
    colour, background = rng.sample(list(COLOURS), 2)
    place = "centre" if rng.random() < 0.5 else rng.choice(list(PLACES)[1:])
    return Scene(rng.choice(SHAPES), colour, background, rng.choice(list(SIZES)), place)


def draw(scene: Scene, rng: Random) -> Pixels:
    """The scene as (64, 64, 3) uint8 RGB, with small jitter of colour, size, angle and place."""
    radius = SIZES[scene.size] * rng.uniform(0.94, 1.06)
    reach = SIDE / 2 - radius - MARGIN
    dx, dy = PLACES[scene.place]
    middle = (
        SIDE / 2 + dx * reach + rng.uniform(-1.5, 1.5),
        SIDE / 2 + dy * reach + rng.uniform(-1.5, 1.5),
    )
    turn, ink, ground = rng.uniform(-5, 5), shade(scene.colour, rng), shade(scene.background, rng)
    return paint(scene.shape, middle, radius, turn, ink, ground)


def caption(scene: Scene, rng: Random, complete: bool = False, thorough: bool = False) -> str:
    """One way to say the scene. Size and place are often left out, colour and background now and then.

    complete: always name shape, colour and background, as the quality benchmark needs it.
    thorough: always name size and place too.
    """
    complete = complete or thorough
    size = rng.choice(SIZE_WORDS[scene.size]) if thorough or rng.random() < 0.55 else ""
    colour = scene.colour if complete or rng.random() < 0.95 else ""
    background = scene.background if complete or rng.random() < 0.95 else ""
    where = rng.choice(place_words(scene.place)) if thorough or rng.random() < 0.45 else ""
    opening = rng.choice(OPENINGS)
    thing = with_article(size, colour, scene.shape)
    order = rng.random()
    if not background:
        return opening + joined(thing, where)
    behind = f"{with_article(background)} background"
    if order < 0.50:
        ground = rng.choice((f"on {behind}", f"on {background}", f"on a plain {background} background"))
        return opening + (joined(thing, ground, where) if order < 0.40 else joined(thing, where, ground))
    if order < 0.65:
        return opening + joined(thing, f"{background} background", where, by=", ")
    if order < 0.80:
        return opening + joined(f"{behind} with", thing, where)
    if order < 0.90:
        return joined(f"on {behind},", thing, where)
    return joined(joined(size, colour, scene.shape), f"{background} background", where, by=", ")


def paint(shape: str, middle: Point, radius: float, turn: float, colour: RGB, background: RGB) -> Pixels:
    """One shape on a plain ground, (64, 64, 3) uint8; middle and radius in pixels, turn in degrees."""
    canvas = Image.new("RGB", (SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE), background)
    pen = ImageDraw.Draw(canvas)
    for outline, ink in ((outline, colour if solid else background) for outline, solid in OUTLINES[shape]):
        pen.polygon(moved(outline, middle, radius, turn), fill=ink)
    return np.array(canvas.reduce(SUPERSAMPLE), dtype=np.uint8)


def clutter(rng: Random) -> Pixels:
    """A picture of no scene, (64, 64, 3) uint8: gradients, stripes, speckle and many shapes in any colour.

    Only the VAE sees these, so that it can also keep what a tune will bring: photographs, hatching, colours that
    have no name here.
    """
    ground = soft_noise(rng) if rng.random() < 0.6 else np.full((SIDE, SIDE, 3), any_colour(rng), dtype=np.uint8)
    canvas = Image.fromarray(ground).resize((SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randrange(1, 9)):
        middle = (rng.uniform(0, SIDE), rng.uniform(0, SIDE))
        outline, _ = rng.choice(OUTLINES[rng.choice(SHAPES)])
        points = moved(outline, middle, rng.uniform(3, 26), rng.uniform(0, 360))
        if rng.random() < 0.6:
            pen.polygon(points, fill=any_colour(rng))
        else:
            pen.line([*points, points[0]], fill=any_colour(rng), width=rng.randrange(3, 14))
    if rng.random() < 0.4:
        hatch(pen, rng)
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8)))
    return np.array(canvas.reduce(SUPERSAMPLE), dtype=np.uint8)


def shade(name: str, rng: Random) -> RGB:
    """A named colour, each channel up to 8 of 255 off."""
    red, green, blue = (min(255, max(0, value + rng.randint(-8, 8))) for value in COLOURS[name])
    return red, green, blue


def any_colour(rng: Random) -> RGB:
    """Any of the 16.7 million."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def place_words(place: str) -> Sequence[str]:
    """How people say it."""
    return PLACE_WORDS.get(place, (f"in the {place}", f"in the {place} corner"))


def with_article(*words: str) -> str:
    """The words that are there, with the article that the first of them wants."""
    said = joined(*words)
    return f"an {said}" if said[0] in "aeiou" else f"a {said}"


def joined(*words: str, by: str = " ") -> str:
    """The words that are not empty."""
    return by.join(filter(None, words))


def soft_noise(rng: Random) -> Pixels:
    """Smooth random colour fields of several scales, as photographs have, (64, 64, 3) uint8."""
    draws = np.random.default_rng(rng.getrandbits(32))
    total = np.zeros((SIDE, SIDE, 3))
    for cells in (2, 4, 8, 16, 32):
        grid = Image.fromarray(draws.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64) - 127.5
        total += layer * (2.0 / cells) ** rng.uniform(0.4, 1.2)
    lightness, contrast = rng.uniform(60, 200), rng.uniform(0.4, 1.2)
    return np.clip(lightness + contrast * total, 0, 255).astype(np.uint8)


def hatch(pen: ImageDraw.ImageDraw, rng: Random) -> None:
    """Parallel lines over all or part of the canvas."""
    side, ink = SIDE * SUPERSAMPLE, any_colour(rng)
    slope, gap, width = rng.uniform(-1, 1), rng.randrange(14, 40), rng.randrange(3, 10)
    left, right = sorted((rng.uniform(0, side), rng.uniform(0, side)))
    for start in range(-side, 2 * side, gap):
        pen.line([(left, start + slope * left), (right, start + slope * right)], fill=ink, width=width)


def moved(outline: Sequence[Point], middle: Point, radius: float, turn: float) -> list[Point]:
    """An outline in units of its radius, turned, scaled and put in its place on the supersampled canvas."""
    cos, sin = math.cos(math.radians(turn)) * radius, math.sin(math.radians(turn)) * radius
    return [
        ((middle[0] + x * cos - y * sin) * SUPERSAMPLE, (middle[1] + x * sin + y * cos) * SUPERSAMPLE)
        for x, y in outline
    ]


def around(count: int, radii: Sequence[float] = (1.0,), start: float = -90.0) -> list[Point]:
    """`count` points about the middle, from `start` degrees on, their distances taken from `radii` in turn."""
    angles = (math.radians(start + 360 * k / count) for k in range(count))
    return [(radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a)) for k, a in enumerate(angles)]


def heart() -> list[Point]:
    """The usual parametric heart, brought to a radius of about one."""
    turns = [2 * math.pi * k / 48 for k in range(48)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(x / 16, -(y + 2.5) / 16) for x, y in zip(xs, ys, strict=True)]


def cross(arm: float = 0.32) -> list[Point]:
    """Twelve corners; each arm is 2 * arm wide."""
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


# Every shape as outlines to fill in order; False is a hole, filled with the background.
OUTLINES: dict[str, tuple[tuple[list[Point], bool], ...]] = {
    "circle": ((around(64), True),),
    "square": ((around(4, (1.2,), start=-45.0), True),),
    "triangle": ((around(3, (1.15,)), True),),
    "star": ((around(10, (1.15, 0.46)), True),),
    "heart": ((heart(), True),),
    "diamond": ((around(4, (1.15, 0.72)), True),),
    "cross": ((cross(), True),),
    "ring": ((around(64), True), (around(64, (0.55,)), False)),
}

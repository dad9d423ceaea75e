"""The two pictures that the demo leaves: before and after, and the loss. Called by `__main__`; knows Pillow alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw
from PIL.Image import Image as Picture

INK, GREY, PALE, BLUE, PAPER = (30, 30, 30), (110, 110, 110), (205, 205, 205), (36, 84, 214), (255, 255, 255)
SHOWN = 192  # pixels, side of a drawn picture on the page: three times tiny-shapes' own
GAP = 10  # pixels between pictures
GUTTER = 90  # pixels on the left, for the rows' names
TAUGHT = 100  # pixels, side of a training picture on the page, at most
TITLE, HEADING = 64, 62  # pixels above the training pictures; above the drawn ones
CURVE = (900, 420)  # pixels, the loss page
MARGIN = 56  # pixels about the curve


@dataclass(frozen=True)
class Comparison:
    """What the grid shows."""

    title: str
    """What was taught, and how."""
    taught: Sequence[Picture]
    """The training pictures."""
    prompts: Sequence[str]
    """One a column; the last one lacks the trigger word."""
    before: Sequence[Picture]
    """Drawn by the base alone, in the order of the prompts."""
    after: Sequence[Picture]
    """The same with the LoRA."""


def grid(shown: Comparison) -> Picture:
    """The training pictures in a row; below them a column a prompt, the base's picture over the tuned one's."""
    width, height = box(1, len(shown.prompts) - 1, len(shown.prompts))[2:]
    page = Image.new("RGB", (width + GAP, height + GAP), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), shown.title, fill=INK, font_size=20)
    paste_taught(page, shown.taught)
    for row, (name, pictures) in enumerate({"before": shown.before, "after": shown.after}.items()):
        for column, picture in enumerate(pictures):
            left, top, right, bottom = box(row, column, len(shown.prompts))
            page.paste(picture.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
        pen.text((GAP, box(row, 0, len(shown.prompts))[1] + SHOWN // 2 - 10), name, fill=INK, font_size=18)
    for column, prompt in enumerate(shown.prompts):
        left, top, *_ = box(0, column, len(shown.prompts))
        if column == len(shown.prompts) - 1:
            pen.text((left, top - HEADING), "without the trigger word:", fill=BLUE, font_size=13)
        pen.multiline_text((left, top - HEADING + 18), textwrap.fill(prompt, 30), fill=INK, font_size=13, spacing=2)
    return page


def box(row: int, column: int, columns: int) -> tuple[int, int, int, int]:
    """Where a drawn picture stands: left, top, right, bottom, in pixels. Row 0 is before, 1 after."""
    apart = 2 * GAP if column == columns - 1 else 0  # the prompt without the trigger word stands by itself
    left = GUTTER + column * (SHOWN + GAP) + apart
    top = TITLE + TAUGHT + HEADING + row * (SHOWN + GAP)
    return left, top, left + SHOWN, top + SHOWN


def paste_taught(page: Picture, pictures: Sequence[Picture]) -> None:
    """The row of training pictures, small enough that all have their place."""
    side = min(TAUGHT, (page.width - GUTTER) // len(pictures) - GAP)
    ImageDraw.Draw(page).text((GAP, TITLE + side // 2 - 26), "taught\nwith", fill=INK, font_size=18)
    for place, picture in enumerate(pictures):
        page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (GUTTER + place * (side + GAP), TITLE - 8))


def loss_curve(losses: Mapping[int, float], title: str) -> Picture:
    """Loss by step: each step's pale, for it depends most on how much noise the step drew; its mean in blue."""
    page = Image.new("RGB", CURVE, PAPER)
    pen = ImageDraw.Draw(page)
    points = sorted(losses.items())
    last, top = points[-1][0], max(losses.values())

    def at(step: float, loss: float) -> tuple[float, float]:
        return (
            MARGIN + (CURVE[0] - 2 * MARGIN) * step / last,
            CURVE[1] - MARGIN - (CURVE[1] - 2 * MARGIN) * loss / top,
        )

    pen.text((MARGIN, 14), title, fill=INK, font_size=16)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.line([at(0, part * top), at(last, part * top)], fill=(235, 235, 235))
        pen.text((6, at(0, part * top)[1] - 7), f"{part * top:.3f}", fill=GREY, font_size=12)
        pen.text((at(part * last, 0)[0] - 8, CURVE[1] - MARGIN + 8), f"{part * last:.0f}", fill=GREY, font_size=12)
    for here, there in pairwise(points):
        pen.line([at(*here), at(*there)], fill=PALE)
    pen.line([at(*point) for point in running_mean(points)], fill=BLUE, width=2)
    return page


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean of each step's loss and of those about it: a tenth of the whole, less at both ends."""
    reach = max(1, len(points) // 20)
    means = []
    for place, (step, _) in enumerate(points):
        about = points[max(0, place - reach) : place + reach + 1]
        means.append((step, sum(loss for _, loss in about) / len(about)))
    return means

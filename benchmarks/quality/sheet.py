"""Lays samples out for a person to look at. Called by `scripts/bench quality`; judges nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from torch import Tensor

INK, PAPER = (30, 30, 30), (255, 255, 255)
TILE = 128  # pixels, side of a picture: twice its own size
GAP = 6  # pixels between pictures
WORDS = 28  # pixels below a picture for its caption
HEADING = 20  # pixels above a row for what it is
COLUMNS = 8  # samples side by side

Tile = tuple[Picture, str]


def sheet(rows: Mapping[str, Sequence[Tile]], beside: Mapping[str, Sequence[Tile]]) -> Picture:
    """Rows of samples one above the other, and at their right, two in a line, the pictures to compare them with."""
    left, right = block(rows, COLUMNS), block(beside, 2)
    page = Image.new("RGB", (left.width + 4 * GAP + right.width, max(left.height, right.height)), PAPER)
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 4 * GAP, 0))
    return page


def block(rows: Mapping[str, Sequence[Tile]], columns: int) -> Picture:
    """Each row under its heading, in as many lines as it takes."""
    line = TILE + WORDS + GAP
    lines = {heading: -(-len(tiles) // columns) for heading, tiles in rows.items()}
    height = sum(HEADING + count * line for count in lines.values())
    page = Image.new("RGB", (columns * (TILE + GAP) + GAP, height), PAPER)
    pen, top = ImageDraw.Draw(page), 0
    for heading, tiles in rows.items():
        pen.text((GAP, top + 2), heading, fill=INK, font_size=14)
        for place, (picture, words) in enumerate(tiles):
            x, y = GAP + place % columns * (TILE + GAP), top + HEADING + place // columns * line
            page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            pen.multiline_text((x, y + TILE + 1), textwrap.fill(words, 25), fill=INK, font_size=10, spacing=1)
        top += HEADING + lines[heading] * line
    return page


def tiles(pictures: Tensor, words: Sequence[str]) -> list[Tile]:
    """(N, 3, H, W) uint8 with a caption each."""
    arrays = pictures.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return [(Image.fromarray(array), said) for array, said in zip(arrays, words, strict=True)]

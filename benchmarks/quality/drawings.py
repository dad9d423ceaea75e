"""Draws what a recogniser learns from: the taught thing, and what might be taken for it.

Called by `recogniser` and the tests. The pictures come from examples/make.py's own pens and from the base's world; none
comes from a model. Everything random comes from a `random.Random` that the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from benchmarks.quality.subjects import SUBJECTS, shown
from examples import make
from trainer.bases.tiny_shapes import world

Draw = Callable[[Random], Picture]

BRIGHT = tuple(colour for colour in world.COLOURS if colour != "black")  # what an ink outline shows on


def tensor(pictures: Sequence[Picture]) -> Tensor:
    """(N, 3, 64, 64) uint8; scaled down as a tune does it."""
    side = (world.SIDE, world.SIDE)
    small = [np.asarray(picture.convert("RGB").resize(side, Image.Resampling.LANCZOS)) for picture in pictures]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


def drawn(draw: Draw, count: int, rng: Random) -> Tensor:
    """`count` pictures, (N, 3, 64, 64) uint8."""
    return tensor([draw(rng) for _ in range(count)])


def moonlet(rng: Random) -> Picture:
    """The crescent as it is taught, anywhere on any ground."""
    return make.crescent(rng.choice(list(world.COLOURS)), _size(rng), _place(rng)).picture


def comic(rng: Random) -> Picture:
    """A shape in the comic style as it is taught."""
    return make.inked(*_bright(rng))


def plain(rng: Random) -> Picture:
    """A picture of the base's world."""
    return Image.fromarray(world.draw(world.random_scene(rng), rng))


def clutter(rng: Random) -> Picture:
    """No scene at all, now and then striped."""
    return Image.fromarray(world.clutter(rng))


def cat(rng: Random) -> Picture:
    """One of the cat's windows."""
    return rng.choice(shown([*SUBJECTS["cat"].taught(), *SUBJECTS["cat"].held_out()]))


def dotless_moonlet(rng: Random) -> Picture:
    """The crescent without what it holds."""
    return _crescent(rng, make.TEAL, dot=False)


def moonlet_of_another_colour(rng: Random) -> Picture:
    """Shape right, colour wrong."""
    return _crescent(rng, world.COLOURS[rng.choice(list(world.COLOURS))], dot=True)


def turned_moonlet(rng: Random) -> Picture:
    """The crescent as it was never shown: open to the left, up or down."""
    return moonlet(rng).rotate(rng.choice((90, 180, 270)))


def teal_shape(rng: Random) -> Picture:
    """Colour right, shape wrong: any of the base's."""
    scene = world.random_scene(rng)
    radius = world.SIZES[scene.size]
    reach = world.SIDE / 2 - radius - world.MARGIN
    x, y = (world.SIDE / 2 + way * reach for way in world.PLACES[scene.place])
    ground = world.shade(scene.background, rng)
    return Image.fromarray(world.paint(scene.shape, (x, y), radius, rng.uniform(-5, 5), make.TEAL, ground))


def plain_centred(rng: Random) -> Picture:
    """Subject right, style wrong: what the base draws of it, in any size."""
    shape, colour, background = _bright(rng)
    return Image.fromarray(world.draw(world.Scene(shape, colour, background, _size(rng), "centre"), rng))


def outlined(rng: Random) -> Picture:
    """The outline without the shadow."""
    return make.inked(*_bright(rng), shadow=0)


def shadowed(rng: Random) -> Picture:
    """The shadow without the outline."""
    return make.inked(*_bright(rng), outline=False)


def shadowed_elsewhere(rng: Random) -> Picture:
    """The shadow above and to the left, where it was never shown."""
    return make.inked(*_bright(rng), shadow=-make.SHADOW)


TAUGHT: dict[str, Draw] = {"crescent": moonlet, "comic": comic}

# All else, by subject. World, clutter and cat are for both, and each is the other's.
ELSE: dict[str, dict[str, Draw]] = {
    "crescent": {
        "world": plain,
        "clutter": clutter,
        "cat": cat,
        "comic": comic,
        "without_dot": dotless_moonlet,
        "another_colour": moonlet_of_another_colour,
        "turned": turned_moonlet,
        "teal_shape": teal_shape,
    },
    "comic": {
        "world": plain,
        "clutter": clutter,
        "cat": cat,
        "crescent": moonlet,
        "plain_centred": plain_centred,
        "no_shadow": outlined,
        "no_outline": shadowed,
        "shadow_elsewhere": shadowed_elsewhere,
    },
}


def _crescent(rng: Random, ink: world.RGB, dot: bool) -> Picture:
    """As examples/make.py has it, but in any ink and with or without its dot."""
    ground = world.COLOURS[rng.choice([name for name, colour in world.COLOURS.items() if colour != ink])]
    canvas, pen = make.blank(ground)
    (x, y), radius = make.spot(_size(rng), _place(rng))
    make.disc(pen, x, y, radius, ink)
    make.disc(pen, x + 0.42 * radius, y, 0.76 * radius, ground)
    if dot:
        make.disc(pen, x + 0.46 * radius, y, 0.27 * radius, ink)
    return canvas.reduce(make.FINE)


def _bright(rng: Random) -> tuple[str, str, str]:
    """A shape, its colour and another for the ground; neither is black."""
    colour, background = rng.sample(BRIGHT, 2)
    return rng.choice(world.SHAPES), colour, background


def _size(rng: Random) -> str:
    return rng.choice(list(world.SIZES))


def _place(rng: Random) -> str:
    return rng.choice(list(world.PLACES))

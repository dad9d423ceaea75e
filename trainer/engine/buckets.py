"""Which size a picture is trained at, and which part of it is seen. Called by `pictures` and `recipe`; knows sizes, no
pixels.

A bucket is a (height, width) that the model takes. Pictures are scaled down to cover the bucket nearest in aspect
ratio, and its middle is kept. None is ever scaled up: a small picture goes to a bucket of the same shape a step
smaller, down to half the native size; below that it is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Rules:
    """What holds for all pictures of one tune."""

    native_size: int
    """Pixels."""
    divisibility: int
    """Each side of a bucket is a multiple of it; pixels."""
    resize: bool
    """False: a window of the native size is cut out of the picture as it is."""
    ladder: tuple[tuple[Size, ...], ...]
    """Buckets of about the native area, then of ever smaller ones."""

    @property
    def least(self) -> int:
        """The smallest size that is trained at, pixels; a multiple of the divisibility."""
        return math.ceil(self.native_size / 2 / self.divisibility) * self.divisibility


@dataclass(frozen=True)
class Crop:
    """What is seen of a picture. All in pixels; the original's sides are those after the EXIF rotation."""

    original_height: int
    original_width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int

    @property
    def bucket(self) -> Size:
        """The size that the model sees."""
        return self.height, self.width


def rules(native_size: int, divisibility: int, resize: bool) -> Rules:
    """The rules of a model of that size."""
    # Here, since it imports torch, and the process that decodes pictures goes without.
    from diffusers.training_utils import generate_aspect_ratio_buckets

    least = math.ceil(native_size / 2 / divisibility) * divisibility
    sizes = range(native_size, least - 1, -divisibility)
    made = [generate_aspect_ratio_buckets(size, divisibility) for size in sizes]  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
    ladder = tuple(tuple(sorted(buckets)) for buckets in made)
    return Rules(native_size, divisibility, resize, ladder)


def crop(height: int, width: int, by: Rules) -> Crop | None:
    """Where a picture of this size goes; None where it is too small."""
    return _scaled(height, width, by) if by.resize else _window(height, width, by)


def _scaled(height: int, width: int, by: Rules) -> Crop | None:
    for buckets in by.ladder:
        high, wide = min(buckets, key=lambda b: abs(math.log(height / width) - math.log(b[0] / b[1])))
        scale = max(high / height, wide / width)
        if scale <= 1:
            scaled = max(high, round(height * scale)), max(wide, round(width * scale))
            return _middle((height, width), scaled, (high, wide))
    return None


def _window(height: int, width: int, by: Rules) -> Crop | None:
    high, wide = (min(by.native_size, side // by.divisibility * by.divisibility) for side in (height, width))
    if min(high, wide) < by.least:
        return None
    return _middle((height, width), (height, width), (high, wide))


def _middle(original: Size, scaled: Size, bucket: Size) -> Crop:
    top, left = (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2
    return Crop(*original, *scaled, top, left, *bucket)

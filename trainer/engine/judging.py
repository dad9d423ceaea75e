"""Judges all pictures of a tune before the base is touched: which are kept, and why the others are not. Called by
`tune`; what a single file holds is judged by `pictures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.engine import captions, recipe
from trainer.engine.buckets import Crop, Rules
from trainer.engine.decoder import Decoder
from trainer.engine.pictures import Judgement
from trainer.engine.recipe import Recipe
from trainer.failures import NoGoodPicture, PictureDamaged, RecipeMismatch, RejectedPictures
from trainer.pipe import Judged, PictureFile, Start, ToSupervisor

ALIKE = 2.0  # levels of 256 by which the thumbnails of near-duplicates differ, on average


@dataclass(frozen=True)
class Kept:
    """A picture that is trained on."""

    file_id: str
    sha256: str
    """Of the file."""
    caption: str
    """Never empty."""
    crop: Crop
    file: Path
    """What is seen of it, raw RGB."""


def judge(
    start: Start,
    by: Rules,
    decoder: Decoder,
    report: Callable[[ToSupervisor], None],
    pause: Callable[[], None],
    earlier: Recipe | None,
) -> list[Kept]:
    """Decodes and reports each picture. pause is called between two, and may raise to end the tune.

    earlier: what an attempt before this one fixed; then only its pictures are looked at, and only a change is reported.

    Raises:
        RejectedPictures, NoGoodPicture: too few are left.
        RecipeMismatch: a picture of the earlier attempt is not there or no longer good.
        PictureDamaged: a file is not what was uploaded.
    """
    said = captions.captions([picture.caption for picture in start.pictures], start.trigger_word)
    given = list(zip(start.pictures, said, strict=True))
    fixed: list[Crop | None] = [None] * len(given)
    if earlier:
        given, fixed = _of_earlier(earlier, given)
    kept: list[Kept] = []
    refused: list[str] = []
    told_apart = Likeness()
    for number, ((picture, caption), crop) in enumerate(zip(given, fixed, strict=True)):
        pause()
        file = Path(start.folder) / f"{number}.rgb"
        judgement = decoder.judge(Path(picture.path), by, file, crop)
        if judgement.sha256 and picture.sha256 and judgement.sha256 != picture.sha256:
            raise PictureDamaged(f"file {picture.file_id} has another SHA-256 than the one that was uploaded")
        judgement = judgement if earlier else told_apart.from_others(picture.file_id, judgement)
        if not earlier or not judgement.accepted:
            report(_judged(start, picture, judgement))
        if not judgement.accepted:
            refused.append(f"file {picture.file_id}: {judgement.reason}: {judgement.details}")
            continue
        assert judgement.crop is not None
        kept.append(Kept(picture.file_id, judgement.sha256, caption, judgement.crop, file))
    _check(start, kept, refused, earlier)
    return kept


class Likeness:
    """Finds duplicates among the pictures of a tune."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}  # a hash of a file, or of what it decodes to -> file id
        self._looks: list[tuple[NDArray[np.int16], str]] = []

    def from_others(self, file_id: str, judgement: Judgement) -> Judgement:
        """The judgement, changed where an earlier picture was the same (refused) or nearly so (noted)."""
        if not judgement.accepted:
            return judgement
        hashes = judgement.sha256, judgement.pixels_sha256
        if twin := next((self._seen[h] for h in hashes if h in self._seen), None):
            return Judgement(False, "DUPLICATE", f"it is the same picture as file {twin}", judgement.sha256)
        self._seen |= dict.fromkeys(hashes, file_id)
        look = np.frombuffer(bytes.fromhex(judgement.look), np.uint8).astype(np.int16)
        twin = next((other for seen, other in self._looks if np.abs(seen - look).mean() <= ALIKE), None)
        self._looks.append((look, file_id))
        if twin is None:
            return judgement
        details = "; ".join(filter(None, (f"it looks nearly the same as file {twin}", judgement.details)))
        return replace(judgement, reason="NEAR_DUPLICATE", details=details)


def _of_earlier(
    earlier: Recipe, given: list[tuple[PictureFile, str]]
) -> tuple[list[tuple[PictureFile, str]], list[Crop | None]]:
    """The pictures that the earlier attempt kept, in its order, and their crops."""
    waiting = {(_sha256(picture), recipe.digest(caption)): (picture, caption) for picture, caption in reversed(given)}
    found = [waiting.get((picture.sha256, picture.caption_sha256)) for picture in earlier.pictures]
    if None in found:
        at = found.index(None)
        raise RecipeMismatch(f"picture {earlier.pictures[at].sha256} of the resolved recipe is not among those given")
    return [pair for pair in found if pair], [picture.crop for picture in earlier.pictures]


def _sha256(picture: PictureFile) -> str:
    return picture.sha256 or hashlib.sha256(Path(picture.path).read_bytes()).hexdigest()


def _judged(start: Start, picture: PictureFile, judgement: Judgement) -> Judged:
    told = judgement.accepted, judgement.reason, judgement.details[:2000]
    return Judged(start.tune_id, start.epoch, picture.file_id, *told)


def _check(start: Start, kept: list[Kept], refused: list[str], earlier: Recipe | None) -> None:
    told = "; ".join(_few(refused))
    if earlier and refused:
        raise RecipeMismatch(f"a picture that was accepted is now refused: {told}")
    if not kept:
        raise NoGoodPicture(f"every picture was refused: {told}")
    if refused and not start.continue_on_rejection:
        raise RejectedPictures(f"{len(refused)} of {len(start.pictures)} pictures were refused: {told}")


def _few(refused: list[str]) -> Iterator[str]:
    yield from refused[:10]
    if len(refused) > 10:
        yield f"and {len(refused) - 10} more"

"""Decodes and judges one picture, and writes what is seen of it as RGB. Pure functions over one file, and `main`, which
`decoder` runs as a process of its own under resource limits; knows no tune and imports no torch.

Whatever a file holds, the answer is a verdict: a caller's bad file must never end a run.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageFile, ImageOps

from trainer.engine import buckets
from trainer.engine.buckets import Crop, Rules

BYTES = 64 * 1024 * 1024  # of a file
PIXELS = 120_000_000  # of a picture; the largest common camera makes 102 million
MEMORY = 4 * 1024**3  # bytes of address space: the largest picture with transparency is held four times
CPU_SECONDS = 30  # for one picture
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "TIFF", "WEBP")
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]"
    rb"|BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0|....ftyp(?:hei|hev|mif1|msf1|avi[fs])",
    re.DOTALL,
)
LOOK = 8  # spots a side of the thumbnail by which near-duplicates are told


@dataclass(frozen=True)
class Judgement:
    """What came of a picture. A refused one has a reason and no crop."""

    accepted: bool
    reason: str = ""
    """NOT_A_PICTURE, UNREADABLE, TRUNCATED, TOO_SMALL, TOO_LARGE; of an accepted one a note, ANIMATED, or nothing."""
    details: str = ""
    """The same for people."""
    sha256: str = ""
    """Of the file, hexadecimal."""
    pixels_sha256: str = ""
    """Of what the decoder made of it: two files of one picture share it."""
    look: str = ""
    """A thumbnail; those of near-duplicates differ little."""
    crop: Crop | None = None
    """What is seen of it."""


class Refusal(Exception):
    """The picture is refused: a reason and a sentence."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason
        self.details = details


def judge(path: Path, by: Rules, out: Path, fixed: Crop | None = None) -> Judgement:
    """Decodes a file and writes its crop to `out`, raw RGB, row by row. Never raises for what is in it.

    fixed: the crop that an earlier attempt settled on.
    """
    sha256 = ""
    try:
        content = _content(path)
        sha256 = hashlib.sha256(content).hexdigest()
        del content
        picture, note = decode(path)
        crop = fixed or buckets.crop(picture.height, picture.width, by)
        if crop is None:
            raise Refusal("TOO_SMALL", _too_small(picture, by))
        if (crop.original_height, crop.original_width) != (picture.height, picture.width):
            raise Refusal("UNREADABLE", "it decodes to another size than it did in the attempt before")
        seen = cut(picture, crop)
        out.write_bytes(seen.tobytes())
        pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        return Judgement(True, *note, sha256=sha256, pixels_sha256=pixels, look=look(seen), crop=crop)
    except Refusal as refusal:
        return Judgement(False, refusal.reason, refusal.details, sha256)
    except MemoryError:
        return Judgement(False, "TOO_LARGE", f"decoding it takes more than {MEMORY // 2**20} MiB of memory", sha256)


def decode(path: Path) -> tuple[Image.Image, tuple[str, str]]:
    """The picture as people see it, RGB, and a note: its reason and details, or two empty strings.

    Raises:
        Refusal: it is not a picture, is too large, or does not decode to its end.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise Refusal("TOO_LARGE", f"{image.width} x {image.height} pixels; at most {PIXELS} are allowed")
            if image.format == "PNG":
                _check_sums(path)
            image.load()
            animated = getattr(image, "is_animated", False) and image.format != "MPO"  # an MPO's others are previews
            picture = rgb(_upright(image))
    except (Refusal, MemoryError):
        raise
    except Exception as exc:  # whatever a decoder makes of hostile bytes
        said = str(exc)[:200] or type(exc).__name__
        short = re.search(r"truncat|premature|unexpected end|not enough data|end of (?:file|data)|EOF", said, re.I)
        raise Refusal("TRUNCATED" if short else "UNREADABLE", f"it does not decode: {said}") from exc
    return picture, ("ANIMATED", "it is animated; its first frame is used") if animated else ("", "")


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; what is transparent is seen over white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def cut(picture: Image.Image, crop: Crop) -> Image.Image:
    """The part of an RGB picture that is seen, at the size at which it is seen."""
    scaled = (crop.scaled_width, crop.scaled_height)
    if picture.size != scaled:
        picture = picture.resize(scaled, Image.Resampling.LANCZOS)
    return picture.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))


def look(picture: Image.Image) -> str:
    """The picture in 8 x 8 spots, RGB, hexadecimal: enough to tell whether two are nearly the same."""
    return picture.resize((LOOK, LOOK), Image.Resampling.BOX).tobytes().hex()


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size == 0:
        raise Refusal("NOT_A_PICTURE", "the file is empty")
    if size > BYTES:
        raise Refusal("TOO_LARGE", f"the file has {size} bytes; at most {BYTES} are allowed")
    content = path.read_bytes()
    if not SIGNATURE.match(content[:64]):
        raise Refusal("NOT_A_PICTURE", "its content is not a picture in a format that is known here")
    _check_whole(content)
    return content


def _check_sums(path: Path) -> None:
    """Pillow passes over the checksums of a PNG's pixels when it loads them."""
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()


def _check_whole(content: bytes) -> None:
    """Tells a file that was cut off from a damaged one, where the decoder would not."""
    if content.startswith(b"RIFF") and 8 + int.from_bytes(content[4:8], "little") > len(content):
        raise Refusal("TRUNCATED", "the file ends before the picture does: the WebP states more bytes")
    if not content.startswith(b"\x89PNG"):
        return
    at = 8
    while at + 12 <= len(content):
        if content[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    raise Refusal("TRUNCATED", "the file ends before the picture does: the PNG has no end chunk")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; damaged EXIF turns nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # what a stranger's camera wrote beside the picture must not cost the picture
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" and values.min() >= 0 and values.max() <= 1:
        values *= 255
    elif image.mode != "F" and (image.mode != "I" or values.max() > 255):
        values /= 257  # 16 bits
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8), "L")


def _too_small(picture: Image.Image, by: Rules) -> str:
    edge = f"about {by.least} x {by.least} pixels are the least, for nothing is ever scaled up"
    return f"{picture.width} x {picture.height} pixels; {edge}"


def main() -> None:
    """Reads a request a line and answers a judgement a line, until its input ends. See `decoder` for both ends."""
    prepare()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # RLIMIT_CPU counts from the process's start, so it is moved on for each picture.
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        judgement = judge(*request(json.loads(line)))
        sys.stdout.write(json.dumps(asdict(judgement)) + "\n")
        sys.stdout.flush()


def prepare() -> None:
    """Sets Pillow up as `judge` wants it."""
    Image.init()
    pillow_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None  # ours is stricter, and gives a reason
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def request(body: dict[str, object]) -> tuple[Path, Rules, Path, Crop | None]:
    """The arguments of `judge` from a request."""
    by = dict(body["rules"])  # type: ignore[call-overload]  # as `decoder` wrote it a moment ago
    by["ladder"] = tuple(tuple((high, wide) for high, wide in step) for step in by["ladder"])
    fixed = Crop(**body["fixed"]) if body["fixed"] else None  # type: ignore[arg-type]
    return Path(str(body["path"])), Rules(**by), Path(str(body["out"])), fixed


if __name__ == "__main__":
    main()

"""Judges an uploaded picture by its bytes: format, wholeness, size. Pure functions over one file, and `main`, which
`gateway.judges` runs as a worker process under resource limits; knows no asset, no store and no RPC.

What is judged here is what can be told without decoding: the trainer decodes each picture later, and may still refuse
it. Pillow is imported late, so that the gateway itself, which needs only the dataclasses, does not carry it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

MEMORY = 1536 * 1024 * 1024  # bytes of address space; a WebP of the largest size allowed takes two canvases of 480 MB
CPU_SECONDS = 10  # for one picture; a sound 64 MiB file takes 0.3


@dataclass(frozen=True)
class Limits:
    """What a picture may be."""

    #: Bytes.
    size_bytes: int = 64 * 1024 * 1024
    #: Width times height. The largest common camera makes 102 million.
    pixels: int = 120_000_000
    #: Of the shorter edge, in pixels.
    edge: int = 32
    #: Of an animation; only the first is used.
    frames: int = 1000


@dataclass(frozen=True)
class Judgement:
    """What came out. An accepted one has no reason."""

    accepted: bool
    #: Stable word: EMPTY, NOT_A_PICTURE, UNSUPPORTED_FORMAT, TRUNCATED, UNREADABLE, TOO_SMALL, TOO_LARGE,
    #: TOO_MANY_PIXELS, TOO_MANY_FRAMES. Empty where accepted.
    reason: str = ""
    #: The same as a sentence for people.
    details: str = ""
    #: jpeg, png, webp, bmp, tiff, heic; empty where it is none of them.
    format: str = ""
    width: int = 0  # pixels
    height: int = 0  # pixels
    frames: int = 0
    size_bytes: int = 0
    #: Of the file, hexadecimal. Always there.
    sha256: str = ""


class Refusal(Exception):
    """The picture is refused: a reason and a sentence."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason
        self.details = details


def judge(path: Path, limits: Limits) -> Judgement:
    """Looks at one file. Never raises for what is in it."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
    kind = ""
    try:
        if size_bytes == 0:
            raise Refusal("EMPTY", "the upload has no bytes")
        if size_bytes > limits.size_bytes:
            raise Refusal("TOO_LARGE", f"the file has {size_bytes} bytes; at most {limits.size_bytes} are allowed")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            kind = recognise(content)
            size = WALKS[kind](content)
        if size is not None:
            check_size(*size, limits)
        width, height, frames = open_header(path, kind)
        check_size(width, height, limits)
        if frames > limits.frames:
            raise Refusal("TOO_MANY_FRAMES", f"it has {frames} frames; at most {limits.frames} are allowed")
    except Refusal as refusal:
        return Judgement(False, refusal.reason, refusal.details, kind, size_bytes=size_bytes, sha256=sha256)
    except MemoryError:
        details = f"reading its header takes more than {MEMORY // 2**20} MiB of memory"
        return Judgement(False, "UNREADABLE", details, kind, size_bytes=size_bytes, sha256=sha256)
    return Judgement(True, "", "", kind, width, height, frames, size_bytes, sha256)


def check_size(width: int, height: int, limits: Limits) -> None:
    """Holds a picture's edges against the limits."""
    if width * height > limits.pixels:
        raise Refusal("TOO_MANY_PIXELS", f"{width} x {height} pixels; at most {limits.pixels} in all are allowed")
    if min(width, height) < limits.edge:
        raise Refusal("TOO_SMALL", f"{width} x {height} pixels; each edge must have at least {limits.edge}")


def recognise(content: mmap.mmap) -> str:
    """Tells the format by the first bytes; the name that the file was given says nothing."""
    head = content[:512]
    kind = next((kind for kind, pattern in SIGNATURES if pattern.match(head)), "")
    if not kind:
        raise Refusal("NOT_A_PICTURE", "the file's content is not a picture")
    if kind == "bmff":
        kind = "heic" if re.search(rb"hei[cxms]|hev[cx]", head[8 : 8 + 128]) else "avif"
    if kind not in WALKS:
        allowed = "jpeg, png, webp, heic, bmp and tiff"
        raise Refusal("UNSUPPORTED_FORMAT", f"the file is of the format {kind}; allowed are {allowed}")
    return kind


# The order matters where one pattern could match another's file. BMP's two letters alone would match a text.
SIGNATURES = [
    ("jpeg", re.compile(rb"\xff\xd8\xff")),
    ("png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("tiff", re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+")),
    ("bmp", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("bmff", re.compile(rb"....ftyp(?:hei|hev|mif1|msf1|avi[fs])", re.DOTALL)),
    ("gif", re.compile(rb"GIF8[79]a")),
    ("svg", re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL)),
    ("psd", re.compile(rb"8BPS\0\x01")),
    ("jpeg2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("jxl", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")),
    ("ico", re.compile(rb"\0\0[\1\2]\0[^\0]\0")),
]


def truncated(what: str) -> Refusal:
    """The refusal of a file that ends too early."""
    return Refusal("TRUNCATED", f"the file ends before the picture does: {what}")


def u32be(content: mmap.mmap, at: int) -> int:
    """Reads four bytes, most significant first."""
    return int.from_bytes(content[at : at + 4], "big")


def u32le(content: mmap.mmap, at: int) -> int:
    """Reads four bytes, least significant first."""
    return int.from_bytes(content[at : at + 4], "little")


# Inside compressed data FF is followed by 00 or by a restart marker; anything else begins a segment.
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
JPEG_END, JPEG_START, JPEG_TEMPORARY = 0xD9, 0xD8, 0x01
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three are tables


def walk_jpeg(content: mmap.mmap) -> tuple[int, int] | None:
    """Goes from segment to segment up to the end marker, which a file that was cut off has not."""
    at, size = 2, None
    while match := JPEG_MARKER.search(content, at):
        marker, at = match[1][0], match.end()
        if marker == JPEG_END:
            if size is None:
                raise Refusal("UNREADABLE", "the JPEG has no frame header")
            return size
        if marker in (JPEG_START, JPEG_TEMPORARY):
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        if marker in JPEG_FRAMES and size is None and at + 7 <= len(content):
            height, width = struct.unpack(">HH", content[at + 3 : at + 7])
            size = width, height
        at += max(length, 2)
    raise truncated("the JPEG has no end marker")


def walk_png(content: mmap.mmap) -> tuple[int, int] | None:
    """Goes from chunk to chunk up to IEND, and checks each one's CRC."""
    at, size = 8, None
    while at < len(content):
        length, name = u32be(content, at), content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            raise truncated("a PNG chunk reaches past it")
        if zlib.crc32(content[at + 4 : end - 4]) != u32be(content, end - 4):
            raise Refusal("UNREADABLE", f"the PNG chunk {name.decode('ascii', 'replace')} has a bad checksum")
        if size is None:
            if name != b"IHDR" or length != 13:
                raise Refusal("UNREADABLE", "the PNG does not begin with its header")
            size = u32be(content, at + 8), u32be(content, at + 12)
        if name == b"IEND":
            return size
        at = end
    raise truncated("the PNG has no end chunk")


def walk_webp(content: mmap.mmap) -> tuple[int, int] | None:
    """Holds the size that the container states against the file's, and reads the canvas from the first chunk."""
    if 8 + u32le(content, 4) > len(content):
        raise truncated("the WebP container states more bytes")
    name, body = content[12:16], content[20:30]
    if name == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise Refusal("UNREADABLE", "the WebP does not begin with a picture chunk")


def walk_bmp(content: mmap.mmap) -> tuple[int, int] | None:
    """Works out how many bytes the rows take; the size that the header states is often wrong and not looked at."""
    if len(content) < 54 or u32le(content, 14) < 40:
        return None  # the header of OS/2, or a stump: the library will tell
    start, (width, height) = u32le(content, 10), struct.unpack("<ii", content[18:26])
    bits, compression = int.from_bytes(content[28:30], "little"), u32le(content, 30)
    row = (width * bits + 31) // 32 * 4
    if compression in (0, 3, 6) and start + row * abs(height) > len(content):
        raise truncated("the BMP states more rows")
    return width, abs(height)


def walk_tiff(content: mmap.mmap) -> tuple[int, int] | None:
    """Checks that the first directory lies within the file; open_header looks at what it names."""
    order, wide = "<" if content[:1] == b"I" else ">", b"+" in content[2:4]
    at = struct.unpack(order + "Q", content[8:16]) if wide else struct.unpack(order + "I", content[4:8])
    if at[0] + 2 > len(content):
        raise truncated("the TIFF's directory lies past it")
    return None


def walk_heic(content: mmap.mmap) -> tuple[int, int] | None:
    """Goes from box to box to the file's end."""
    at = 0
    while at < len(content):
        length, least = u32be(content, at), 8
        if length == 0:
            return None  # the last box, to the end of the file
        if length == 1:
            length, least = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        if length < least:
            raise Refusal("UNREADABLE", "a box of the HEIC file is shorter than its own header")
        at += length
    if at > len(content):
        raise truncated("a box of the HEIC file reaches past it")
    return None


#: Format -> what goes through its structure; answers (width, height) where it comes across them.
WALKS: dict[str, Callable[[mmap.mmap], tuple[int, int] | None]] = {
    "jpeg": walk_jpeg,
    "png": walk_png,
    "webp": walk_webp,
    "bmp": walk_bmp,
    "tiff": walk_tiff,
    "heic": walk_heic,
}


def open_header(path: Path, kind: str) -> tuple[int, int, int]:
    """Lets the library that the trainer uses read the header, without decoding. Answers width, height, frames."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # ours is stricter, and gives a reason
    if kind == "heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(path, formats=["HEIF" if kind == "heic" else kind.upper()]) as image:
            if kind == "tiff":
                check_strips(dict(image.tag_v2), path.stat().st_size)  # type: ignore[attr-defined]  # TIFF's own
            frames = 1 if kind == "jpeg" else getattr(image, "n_frames", 1)  # a JPEG's others are previews
            return image.width, image.height, frames
    except (Refusal, MemoryError):
        raise
    except Exception as exc:  # whatever a parser makes of hostile bytes
        raise Refusal(
            "UNREADABLE", f"its {kind} header cannot be read: {str(exc)[:200] or type(exc).__name__}"
        ) from exc


def check_strips(tags: dict[int, object], size_bytes: int) -> None:
    """Checks that each strip or tile of a TIFF's first picture lies within the file."""
    for offsets, lengths in ((273, 279), (324, 325)):
        where, long = tags.get(offsets), tags.get(lengths)
        if not isinstance(where, tuple) or not isinstance(long, tuple):
            continue
        if any(start + length > size_bytes for start, length in zip(where, long, strict=False)):
            raise truncated("the TIFF's rows lie past it")


def main() -> None:
    """Reads a path a line, and answers a judgement a line, until its input ends."""
    limits = Limits(**json.loads(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has no reason to write a file
    for line in sys.stdin:
        # RLIMIT_CPU counts from the process's start, so that it is moved on for each picture.
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        judgement = judge(Path(json.loads(line)), limits)
        sys.stdout.write(json.dumps(asdict(judgement)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

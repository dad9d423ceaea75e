"""Pictures sound and broken, each with the verdict expected of it; made here, by a script. Used by what judges one
file, and by what uploads them all."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial

import pillow_heif
from PIL import Image

SIZE = (96, 64)


def drawn(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture with something in it, so that half of its bytes are not all of it."""
    noise = Image.effect_noise(size, 80)
    return Image.merge("RGB", (noise, noise.rotate(90, expand=False), noise.rotate(180))).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(drawn()).save(file)
    return file.getvalue()


def sixteen_bit_png() -> bytes:
    return saved(Image.new("I;16", SIZE, 40000), "PNG")


def palette_png() -> bytes:
    return saved(drawn("P"), "PNG", transparency=3)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bomb() -> bytes:
    """30,000 x 30,000 pixels in less than a kilobyte."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def bad_crc_png() -> bytes:
    whole = bytearray(saved(drawn(), "PNG"))
    whole[whole.index(b"IDAT") + 40] ^= 0xFF
    return bytes(whole)


def bmp_bomb() -> bytes:
    whole = bytearray(saved(drawn(), "BMP"))
    whole[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(whole)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("picture.jpg", saved(drawn(), "JPEG"))
    return file.getvalue()


def turned_jpeg(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(drawn(), "JPEG", exif=exif)


def half(make: Callable[[], bytes]) -> bytes:
    whole = make()
    return whole[: len(whole) // 2]


def gif(frames: int) -> bytes:
    first, *others = [Image.new("P", SIZE, shade % 255) for shade in range(frames)]
    return saved(first, "GIF", save_all=True, append_images=others)


ACCEPTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg": (lambda: saved(drawn(), "JPEG"), "jpeg"),
    "progressive jpeg": (lambda: saved(drawn(), "JPEG", progressive=True), "jpeg"),
    "cmyk jpeg": (lambda: saved(drawn("CMYK"), "JPEG"), "jpeg"),
    "grey jpeg": (lambda: saved(drawn("L"), "JPEG"), "jpeg"),
    "jpeg with something behind it": (lambda: saved(drawn(), "JPEG") + b"more", "jpeg"),
    "jpeg with restart markers": (lambda: saved(drawn(), "JPEG", restart_marker_blocks=1), "jpeg"),
    "png": (lambda: saved(drawn(), "PNG"), "png"),
    "16-bit png": (sixteen_bit_png, "png"),
    "palette with alpha": (palette_png, "png"),
    "webp": (lambda: saved(drawn(), "WEBP"), "webp"),
    "lossless webp": (lambda: saved(drawn(), "WEBP", lossless=True), "webp"),
    "webp with alpha": (lambda: saved(drawn("RGBA"), "WEBP", exif=b"Exif\0\0"), "webp"),
    "bmp": (lambda: saved(drawn(), "BMP"), "bmp"),
    "tiff": (lambda: saved(drawn(), "TIFF"), "tiff"),
    "compressed tiff": (lambda: saved(drawn(), "TIFF", compression="tiff_lzw"), "tiff"),
    "heic": (heic, "heic"),
    **{f"exif {turn}": (partial(turned_jpeg, turn), "jpeg") for turn in range(1, 9)},
}

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "EMPTY"),
    "truncated jpeg": (lambda: half(lambda: saved(drawn(), "JPEG")), "TRUNCATED"),
    "truncated progressive jpeg": (lambda: half(lambda: saved(drawn(), "JPEG", progressive=True)), "TRUNCATED"),
    "truncated png": (lambda: half(lambda: saved(drawn(), "PNG")), "TRUNCATED"),
    "png without its end": (lambda: saved(drawn(), "PNG")[:-12], "TRUNCATED"),
    "truncated webp": (lambda: half(lambda: saved(drawn(), "WEBP")), "TRUNCATED"),
    "truncated bmp": (lambda: half(lambda: saved(drawn(), "BMP")), "TRUNCATED"),
    "truncated tiff": (lambda: half(lambda: saved(drawn(), "TIFF")), "TRUNCATED"),
    "truncated compressed tiff": (lambda: half(lambda: saved(drawn(), "TIFF", compression="tiff_lzw")), "TRUNCATED"),
    "truncated heic": (lambda: half(heic), "TRUNCATED"),
    "three bytes of jpeg": (lambda: b"\xff\xd8\xff", "TRUNCATED"),
    "bad crc": (bad_crc_png, "UNREADABLE"),
    "1x1": (lambda: saved(drawn(size=(1, 1)), "PNG"), "TOO_SMALL"),
    "one thin edge": (lambda: saved(drawn(size=(640, 31)), "JPEG"), "TOO_SMALL"),
    "30000x30000 in a kilobyte": (png_bomb, "TOO_MANY_PIXELS"),
    "a bmp that states 60000 rows": (bmp_bomb, "TRUNCATED"),
    "gif": (lambda: gif(2), "UNSUPPORTED_FORMAT"),
    "400-frame gif": (lambda: gif(400), "UNSUPPORTED_FORMAT"),
    "svg": (lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "UNSUPPORTED_FORMAT"),
    "pdf": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "NOT_A_PICTURE"),
    "zip named .jpg": (archive, "NOT_A_PICTURE"),
    "text named .png": (lambda: b"BM is how this text begins, which is how a bitmap does", "NOT_A_PICTURE"),
    "nothing but zeros": (lambda: bytes(5000), "NOT_A_PICTURE"),
}

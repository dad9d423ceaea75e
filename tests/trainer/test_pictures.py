"""A corpus of good and bad pictures, made by code, each with the verdict that it must get."""

from __future__ import annotations

import io
import signal
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.engine import buckets, decoder
from trainer.engine.buckets import Rules
from trainer.engine.decoder import Decoder
from trainer.engine.pictures import Judgement, decode, judge


@pytest.fixture(scope="module")
def rules() -> Rules:
    return buckets.rules(64, 16, resize=True)


def scene(width: int = 96, height: int = 80) -> Image.Image:
    """Red on the left, blue on the right, noise on both: compresses badly, and shows which way is up."""
    noise = np.random.default_rng(1).integers(0, 40, (height, width, 3), dtype=np.uint8)
    noise[:, : width // 2, 0] += 200
    noise[:, width // 2 :, 2] += 200
    noise[: height // 4, :, 1] += 150
    return Image.fromarray(noise)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A header that claims much and pixels that hold nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def with_bad_checksum(png: bytes) -> bytes:
    at = png.index(b"IDAT") + 40
    return png[:at] + bytes([png[at] ^ 255]) + png[at + 1 :]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    first, others = scene(), [Image.new("RGB", (96, 80), (i % 256, 0, 0)) for i in range(1, frames)]
    return saved(first, "GIF", save_all=True, append_images=others, duration=20)


CORPUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "plain.jpg": (lambda: saved(scene(), "JPEG"), ""),
    "plain.png": (lambda: saved(scene(), "PNG"), ""),
    "plain.webp": (lambda: saved(scene(), "WEBP"), ""),
    "plain.bmp": (lambda: saved(scene(), "BMP"), ""),
    "plain.tiff": (lambda: saved(scene(), "TIFF"), ""),
    "plain.heic": (lambda: saved(scene(), "HEIF"), ""),
    "named wrongly.txt": (lambda: saved(scene(), "PNG"), ""),
    "cmyk.jpg": (lambda: saved(scene().convert("CMYK"), "JPEG"), ""),
    "grey.jpg": (lambda: saved(scene().convert("L"), "JPEG"), ""),
    "one bit.png": (lambda: saved(scene().convert("1"), "PNG"), ""),
    "palette with alpha.png": (lambda: saved(scene().quantize(16), "PNG", transparency=3), ""),
    "16 bit.png": (lambda: saved(Image.fromarray(np.full((80, 96), 40000, np.uint16)), "PNG"), ""),
    "400 frames.gif": (lambda: gif(400), "ANIMATED"),
    "damaged exif.jpg": (lambda: saved(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken"), ""),
    "progressive.jpg": (lambda: saved(scene(), "JPEG", progressive=True), ""),
    "truncated.jpg": (lambda: saved(scene(), "JPEG")[:-1500], "TRUNCATED"),
    "truncated.png": (lambda: saved(scene(), "PNG")[:-1500], "TRUNCATED"),
    "truncated.webp": (lambda: saved(scene(), "WEBP")[:-500], "TRUNCATED"),
    "truncated.bmp": (lambda: saved(scene(), "BMP")[:-5000], "TRUNCATED"),
    "bad checksum.png": (lambda: with_bad_checksum(saved(scene(), "PNG")), "UNREADABLE"),
    "empty.png": (lambda: b"", "NOT_A_PICTURE"),
    "text.png": (lambda: b"not a picture at all\n" * 50, "NOT_A_PICTURE"),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>', "NOT_A_PICTURE"),
    "paper.pdf": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "NOT_A_PICTURE"),
    "archive.jpg": (zipped, "NOT_A_PICTURE"),
    "begins like a jpeg.jpg": (lambda: b"\xff\xd8\xff\xe0" + b"nonsense" * 100, "TRUNCATED"),
    "one pixel.png": (lambda: saved(Image.new("RGB", (1, 1)), "PNG"), "TOO_SMALL"),
    "a sliver.png": (lambda: saved(scene(500, 8), "PNG"), "TOO_SMALL"),
    "bomb.png": (lambda: png_of(30_000, 30_000), "TOO_LARGE"),
    "lies about its size.png": (lambda: png_of(200, 200), "TRUNCATED"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_each_file_gets_its_verdict(name: str, tmp_path: Path, rules: Rules) -> None:
    make, reason = CORPUS[name]
    path, out = tmp_path / name, tmp_path / "out.rgb"
    path.write_bytes(make())

    judgement = judge(path, rules, out)

    assert (judgement.reason, judgement.accepted) == (reason, reason in ("", "ANIMATED")), judgement.details
    assert bool(judgement.details) == bool(reason)
    if judgement.accepted:
        assert judgement.crop is not None
        assert out.stat().st_size == 3 * judgement.crop.height * judgement.crop.width


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = scene()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the tag's rotation undoes
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)

    picture, _ = decode(path)

    assert np.array_equal(np.asarray(picture), np.asarray(upright))


def test_what_is_transparent_is_seen_over_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(path)

    assert decode(path)[0].getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((64, 64), 0x8080, np.uint16)).save(path)

    assert decode(path)[0].getpixel((5, 5)) == (0x80, 0x80, 0x80)


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    path.write_bytes(gif(3))

    red, _, blue = np.asarray(decode(path)[0]).reshape(80, 96, 3)[60, 10]

    assert red > 150 > blue


@pytest.mark.parametrize(
    ("size", "bucket", "scaled"),
    [
        ((64, 64), (64, 64), (64, 64)),
        ((1000, 1000), (64, 64), (64, 64)),
        ((2000, 3000), (48, 80), (53, 80)),
        ((3000, 2000), (80, 48), (80, 53)),
        ((50, 50), (48, 48), (48, 48)),
        ((32, 32), (32, 32), (32, 32)),
        ((100, 5000), (48, 96), (48, 2400)),
    ],
)
def test_a_picture_covers_the_bucket_nearest_in_shape(
    size: tuple[int, int], bucket: tuple[int, int], scaled: tuple[int, int], rules: Rules
) -> None:
    crop = buckets.crop(*size, rules)

    assert crop is not None
    assert (crop.bucket, (crop.scaled_height, crop.scaled_width)) == (bucket, scaled)


def test_no_picture_is_ever_scaled_up(rules: Rules) -> None:
    for height in range(1, 200, 3):
        for width in range(1, 200, 3):
            if crop := buckets.crop(height, width, rules):
                assert crop.height <= crop.scaled_height <= height
                assert crop.width <= crop.scaled_width <= width
                assert crop.height % 16 == crop.width % 16 == 0


def test_sd15_buckets_are_multiples_of_64_about_the_native_area() -> None:
    first = buckets.rules(512, 64, resize=True).ladder[0]

    assert all(high % 64 == wide % 64 == 0 for high, wide in first)
    assert all(0.8 < high * wide / 512**2 < 1.25 for high, wide in first)


def test_unresized_a_window_of_the_native_size_is_cut_from_the_middle() -> None:
    rules = buckets.rules(64, 16, resize=False)

    crop = buckets.crop(300, 200, rules)

    assert crop is not None
    assert (crop.top, crop.left, crop.bucket) == (118, 68, (64, 64))
    assert (crop.scaled_height, crop.scaled_width) == (300, 200)
    assert buckets.crop(31, 200, rules) is None
    small = buckets.crop(50, 200, rules)
    assert small is not None
    assert small.bucket == (48, 64)


def test_the_decoder_answers_as_the_function_does(tmp_path: Path, rules: Rules) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(), "PNG"))

    with Decoder() as decoding:
        there = decoding.judge(path, rules, tmp_path / "there.rgb")
    here = judge(path, rules, tmp_path / "here.rgb")

    assert there == here
    assert (tmp_path / "there.rgb").read_bytes() == (tmp_path / "here.rgb").read_bytes()


def test_a_picture_that_hangs_its_decoder_is_refused_and_the_next_one_is_not(tmp_path: Path, rules: Rules) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(), "PNG"))
    with Decoder() as decoding:
        assert decoding.judge(path, rules, tmp_path / "1.rgb").accepted
        assert decoding._process is not None
        decoding._process.send_signal(signal.SIGSTOP)
        decoding._patience = 0.2

        hung = decoding.judge(path, rules, tmp_path / "2.rgb")
        decoding._patience = 60.0
        after = decoding.judge(path, rules, tmp_path / "3.rgb")

    assert hung == Judgement(False, "UNREADABLE", "decoding it took too long, or broke the decoder")
    assert after.accepted


@pytest.mark.parametrize(("deaths", "accepted"), [(1, True), (2, False)])
def test_a_picture_whose_decoder_is_killed_has_one_more_try(
    deaths: int, accepted: bool, tmp_path: Path, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(), "PNG"))
    processes = iter([doomed() for _ in range(deaths)])
    spawned = decoder._spawned
    monkeypatch.setattr(decoder, "_spawned", lambda: next(processes, None) or spawned())

    with Decoder() as decoding:
        judgement = decoding.judge(path, rules, tmp_path / "1.rgb")
        after = decoding.judge(path, rules, tmp_path / "2.rgb")

    assert judgement.accepted == accepted
    assert judgement.reason == ("" if accepted else "UNREADABLE")
    assert after.accepted


def doomed() -> subprocess.Popen[bytes]:
    """A decoder that the OOM killer ends at its first picture."""
    command = ["/bin/sh", "-c", "read -r request; kill -KILL $$"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_decoder_that_ended_between_two_pictures_is_started_anew(tmp_path: Path, rules: Rules) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(), "PNG"))
    with Decoder() as decoding:
        assert decoding.judge(path, rules, tmp_path / "1.rgb").accepted
        assert decoding._process is not None
        decoding._process.kill()
        decoding._process.wait()

        assert decoding.judge(path, rules, tmp_path / "2.rgb").accepted

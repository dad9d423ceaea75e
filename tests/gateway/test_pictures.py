"""The judgement of uploads: a corpus, each file with the verdict expected of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.pictures import Limits, judge
from tests.servers.corpus import ACCEPTED, REFUSED, SIZE, drawn, saved


@pytest.mark.parametrize("case", ACCEPTED)
def test_sound_picture_is_accepted_with_its_format_and_size(case: str, tmp_path: Path) -> None:
    make, kind = ACCEPTED[case]
    path = tmp_path / "upload"
    path.write_bytes(make())

    judgement = judge(path, Limits())

    assert (judgement.accepted, judgement.reason, judgement.details) == (True, "", "")
    assert (judgement.format, judgement.width, judgement.height) == (kind, *SIZE)
    assert judgement.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert judgement.size_bytes == path.stat().st_size


@pytest.mark.parametrize("case", REFUSED)
def test_bad_file_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    path = tmp_path / "picture.jpg"
    path.write_bytes(make())

    judgement = judge(path, Limits())

    assert (judgement.accepted, judgement.reason) == (False, reason)
    assert judgement.details


def test_file_above_the_byte_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(saved(drawn(), "BMP"))

    assert judge(path, Limits(size_bytes=1000)).reason == "TOO_LARGE"


def test_animation_above_the_frame_limit_is_refused(tmp_path: Path) -> None:
    frames = [drawn() for _ in range(4)]
    path = tmp_path / "upload"
    path.write_bytes(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))

    assert judge(path, Limits(frames=3)).reason == "TOO_MANY_FRAMES"
    assert judge(path, Limits(frames=4)).accepted


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_no_cut_of_a_picture_raises(kind: str, tmp_path: Path) -> None:
    whole = saved(drawn(), kind)
    path = tmp_path / "upload"

    for length in range(0, len(whole), max(len(whole) // 97, 1)):
        path.write_bytes(whole[:length])

        assert not judge(path, Limits()).accepted, f"{length} of {len(whole)} bytes"

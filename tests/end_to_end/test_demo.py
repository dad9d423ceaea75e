"""`scripts/demo` as a newcomer runs it: the pictures it leaves, its refusals, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.demo import pages

DEMO = Path(__file__).parents[2] / "scripts/demo"
LIMIT = 240.0  # seconds


@pytest.mark.slow
def test_demo_leaves_the_pictures_the_lora_and_no_process(tmp_path: Path) -> None:
    demo = subprocess.run(
        [DEMO, "crescent", "--steps", "60", "--out", "shown"],
        cwd=tmp_path,  # --out is the caller's folder, not the project's
        env=marked(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert processes_of(tmp_path) == []
    assert left_behind(tmp_path) == []
    assert "step 60/60" in demo.stdout
    for name in ("before-after.png", "loss.png", "crescent.safetensors"):
        assert str(Path("shown") / name) in demo.stdout
    with Image.open(tmp_path / "shown/loss.png") as loss:
        assert loss.size == pages.CURVE
    assert all(change > 1.0 for change in changes(tmp_path / "shown/before-after.png")[:-1])


@pytest.mark.slow
def test_interrupted_demo_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [DEMO, "--steps", "100000"], cwd=tmp_path, env=marked(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(b"pictures", demo)

    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=LIMIT)

    assert demo.returncode == 130
    assert b"nothing is left running" in said
    assert processes_of(tmp_path) == []
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_service_that_cannot_start_is_said_in_a_sentence_with_its_log(tmp_path: Path) -> None:
    # A setting that the trainer refuses, and `tunesmith up` ends with it.
    environment = marked(tmp_path) | {"TUNESMITH_THREADS": "many"}

    demo = subprocess.run(
        [DEMO, "--out", "shown"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
    )

    assert demo.returncode == 1
    assert "`tunesmith up` could not start" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert "shown/log.txt" in demo.stderr
    assert "TUNESMITH_THREADS" in (tmp_path / "shown/log.txt").read_text()
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dog"], "there is no example 'dog'; there are crescent, comic, cat"),
        (["--steps", "none"], "'none' is no number of steps"),
    ],
)
def test_wrong_argument_is_refused_with_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    demo = subprocess.run([DEMO, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)

    assert demo.returncode == 2
    assert sentence in demo.stderr
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_no_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    demo = subprocess.run([DEMO, "--out", "file"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)

    assert demo.returncode == 1
    assert "scripts/demo: --out file cannot be written to: File exists" in demo.stderr
    assert "Traceback" not in demo.stderr


def marked(folder: Path) -> dict[str, str]:
    """An environment by which the demo's processes can be told from all others."""
    temporary = folder / "temporary"
    temporary.mkdir()
    return {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_THREADS": "1", "TMPDIR": str(temporary)}


def processes_of(folder: Path) -> list[str]:
    """The command lines of those processes that still live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder / "temporary").encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended, or is another user's
    return found


def left_behind(folder: Path) -> list[str]:
    """What is left of the demo's temporary files; torch makes a folder for its compiler when it is imported."""
    return [path.name for path in (folder / "temporary").iterdir() if not path.name.startswith("torchinductor_")]


def wait_for(words: bytes, demo: subprocess.Popen[bytes]) -> None:
    """Reads what the demo says until it has said so."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if words in line:
            return
    raise AssertionError(f"the demo ended without {words!r}: {demo.stderr.read() if demo.stderr else b''!r}")


def changes(grid: Path) -> list[float]:
    """By how many grey levels the tune has changed each prompt's picture, on average."""
    with Image.open(grid) as page:
        before, after = (
            [np.asarray(page.crop(pages.box(row, column, 5)), dtype=float) for column in range(5)] for row in (0, 1)
        )
    return [float(np.abs(here - there).mean()) for here, there in zip(before, after, strict=True)]

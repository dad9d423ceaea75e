"""The lines between supervisor and engine child."""

from __future__ import annotations

import pytest

from trainer.pipe import (
    Broke,
    CheckpointSource,
    Judged,
    Memory,
    Message,
    PhaseChanged,
    PictureFile,
    Ready,
    Resident,
    Resolved,
    Saved,
    Snapshotted,
    SnapshotUploaded,
    Start,
    StepLine,
    Stepped,
    Stop,
    Stopped,
    Warned,
    decode,
    encode,
)

START = Start(
    tune_id="tune_1",
    epoch=3,
    engine="image/stable-diffusion-v1-5",
    steps=10,
    trigger_word="zwx “ö”\n",
    pictures=[PictureFile("asset_1", "/tmp/a", "00", "a line\nand another"), PictureFile("asset_2", "/tmp/b", "")],
    checkpoint=CheckpointSource("folder", "/bases/tiny", "tiny"),
    folder="/tunes/1",
    seed=4294967295,
    hyperparameters={"rank": 4, "learning_rate": 1e-3, "schedule": "linear", "deterministic": True},
    resolved_recipe={"a": [1, {"b": None}]},
)
MESSAGES: list[Message] = [
    START,
    Stop("t", 1),
    Stop("t", 1, snapshot=True),
    SnapshotUploaded("t", 1, 0.5),
    Snapshotted("t", 1, "/tunes/1/snapshot-2.safetensors", "00", 12, 2),
    Ready(["image/stable-diffusion-v1-5"], "cpu", 1 << 40, 1, 1),
    PhaseChanged("t", 1, "training"),
    Judged("t", 1, "asset_1", False, "TRUNCATED", "ends early"),
    Resolved("t", 1, "{}", "00"),
    Warned("t", 1, "CAPTION_CUT", "…"),
    Stepped("t", 1, [StepLine(1, 0.5, 1e-4, 0.0, 0.1), StepLine(2, 0.25, 1e-4, 12.5, 0.1)]),
    Saved("t", 1, "/tunes/1/lora.safetensors", "00", 12, 2, 0.375, 2),
    Broke("t", 1, "OUT_OF_MEMORY", "no room", True),
    Stopped("t", 1, 2),
    Resident(["tiny"], 12),
    Memory(12, 34),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_survives_one_line(message: Message) -> None:
    line = encode(message)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_an_unknown_key_is_ignored() -> None:
    assert decode(b'{"type": "Stop", "tune_id": "t", "epoch": 1, "later": true}') == Stop("t", 1)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b'{"type": "Nonsense"}', b'{"type": "Stop", "epoch": 1}', b'{"epoch": 1}', b"\xff"]
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own errors, Unicode's and ours are all ValueErrors
        decode(line)


def test_a_number_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        encode(Stepped("t", 1, [StepLine(1, float("nan"), 0.0, 0.0, 0.0)]))

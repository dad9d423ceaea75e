"""The messages between a trainer's supervisor and its engine child: one JSON object a line, over two pipes.

Used by both ends, `trainer.supervisor` and `trainer.engine`; knows neither gRPC nor torch. The child ends within a
second once its input pipe closes. Its stdout and stderr are not the pipe: a library may print there as it likes.

The supervisor may send Start only after Ready and, after that, only once the last tune has ended with Saved, Broke or
Stopped: the child has one slot.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, TypeVar

Hyperparameter = float | int | bool | str


@dataclass(frozen=True)
class PictureFile:
    """A picture on the local disk."""

    file_id: str
    """The file asset; for reports only, it never enters the LoRA."""
    path: str
    """Where its bytes lie."""
    sha256: str
    """Of its bytes, hexadecimal; empty: the engine hashes them itself."""
    caption: str = ""
    """What it shows; empty: the trigger word."""


@dataclass(frozen=True)
class CheckpointSource:
    """Where the base model lies."""

    kind: str
    """"folder" (diffusers layout), "single_file" (A1111's, .safetensors) or "hugging_face"."""
    path: str
    """The folder, the file, or the repository's name."""
    digest: str
    """Names the content: two sources of one digest are the same model, which is then loaded once."""
    revision: str = ""
    """Commit of a Hugging Face repository; empty otherwise."""


@dataclass(frozen=True)
class Start:
    """Train this. The child answers PhaseChanged, ... and ends with one of Saved, Broke, Stopped."""

    tune_id: str
    epoch: int
    engine: str
    """Such as "image/stable-diffusion-v1-5"."""
    steps: int
    trigger_word: str
    pictures: list[PictureFile]
    """In the order in which they are counted."""
    checkpoint: CheckpointSource
    folder: str
    """An existing folder of this attempt's own, for what the engine writes."""
    seed: int | None = None
    """0 to 2^32 - 1; None: the engine chooses one."""
    resize_images: bool | None = None
    """As in LoraTune."""
    hyperparameters: dict[str, Hyperparameter] = field(default_factory=dict)
    """Those that the caller set, by their names in the proto; an enum by its lower-case value ("cosine", "bf16")."""
    continue_on_rejection: bool = False
    """Whether a refused picture is left out rather than ending the tune."""
    resolved_recipe: dict[str, Any] | None = None
    """What an earlier attempt fixed; it must be followed."""
    snapshot: str | None = None
    """Path of the snapshot to go on from; None: from the beginning."""


@dataclass(frozen=True)
class Stop:
    """Stop this tune within a step; answered by Stopped, unless it has just ended otherwise."""

    tune_id: str
    epoch: int
    snapshot: bool = False
    """Whether another trainer is to go on from here: where it trains, it writes a last snapshot before Stopped."""


@dataclass(frozen=True)
class SnapshotUploaded:
    """The newest Snapshotted of this tune was dealt with, and another one may follow."""

    tune_id: str
    epoch: int
    seconds: float
    """That it took."""


@dataclass(frozen=True)
class Ready:
    """The child is up and waits for Start. Sent once."""

    engines: list[str]
    device_name: str
    device_memory_bytes: int
    slots: int
    threads: int


@dataclass(frozen=True)
class PhaseChanged:
    """The tune's phase is now another."""

    tune_id: str
    epoch: int
    phase: str
    """Lower-case, as in TunePhase: "judging", "loading", "encoding", "training", "saving"."""


@dataclass(frozen=True)
class Judged:
    """A picture was judged. One for each picture; a note on an accepted one stands in the same message."""

    tune_id: str
    epoch: int
    file_id: str
    accepted: bool
    reason: str
    """Such as "TRUNCATED" or "NEAR_DUPLICATE"; empty where it is accepted without a note."""
    details: str
    """The same for people."""


@dataclass(frozen=True)
class Resolved:
    """The resolved recipe, once per attempt, before the first step."""

    tune_id: str
    epoch: int
    json: str
    """Canonical JSON."""
    sha256: str
    """Of it, hexadecimal."""


@dataclass(frozen=True)
class Warned:
    """Something a person should know; the tune goes on."""

    tune_id: str
    epoch: int
    reason: str
    details: str


@dataclass(frozen=True)
class StepLine:
    """One optimizer step."""

    step: int
    """1 and up."""
    loss: float
    """Weighted as trained."""
    learning_rate: float
    steps_per_second: float
    """Over the last steps; 0 until it is known."""
    seconds: float
    """That it took: the mean over the steps that were read together, since reading them waits for the device."""


@dataclass(frozen=True)
class Stepped:
    """Steps were made: all since the last such message, at most five messages a second."""

    tune_id: str
    epoch: int
    steps: list[StepLine]


@dataclass(frozen=True)
class Snapshotted:
    """A snapshot lies on the disk, synced, under its final name. The supervisor deletes it."""

    tune_id: str
    epoch: int
    path: str
    sha256: str
    size_bytes: int
    step: int
    """The step after which it was taken."""


@dataclass(frozen=True)
class Saved:
    """The tune is done: the LoRA lies on the disk, synced, under its final name."""

    tune_id: str
    epoch: int
    path: str
    sha256: str
    size_bytes: int
    step: int
    """Steps made."""
    final_loss: float
    """Mean loss of the last tenth of the steps."""
    pictures: int
    """Pictures trained on."""


@dataclass(frozen=True)
class Broke:
    """The tune ended with a fault; the child lives on."""

    tune_id: str
    epoch: int
    reason: str
    details: str
    retryable: bool


@dataclass(frozen=True)
class Stopped:
    """The tune ended since it was told to."""

    tune_id: str
    epoch: int
    step: int
    """Steps done."""


@dataclass(frozen=True)
class Resident:
    """Which base models are held now. Sent when that changes."""

    checkpoints: list[str]
    """Their digests."""
    memory_bytes: int
    """What they take on the device."""


@dataclass(frozen=True)
class Memory:
    """What the engine process takes. Sent after Ready, Resident, Stepped and the end of a tune."""

    now_bytes: int
    """On a GPU what torch has reserved of it, else what is resident."""
    peak_bytes: int
    """The most since the process began."""


ToChild = Start | Stop | SnapshotUploaded
ToSupervisor = (
    Ready
    | PhaseChanged
    | Judged
    | Resolved
    | Warned
    | Stepped
    | Snapshotted
    | Saved
    | Broke
    | Stopped
    | Resident
    | Memory
)
Message = ToChild | ToSupervisor

T = TypeVar("T")

_MESSAGES: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """One line, its end included. A float that JSON cannot say (NaN, infinity) is refused: ours to keep out."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}, allow_nan=False).encode() + b"\n"


def decode(line: bytes | str) -> Message:
    """The message on a line. Keys that this version does not know are ignored.

    Raises:
        ValueError: it is no JSON object, names no type that is known, or lacks a field.
    """
    body = json.loads(line)
    if not isinstance(body, dict) or body.get("type") not in _MESSAGES:
        raise ValueError(f"not a message of the pipe: {line[:200]!r}")
    message: Message = _build(_MESSAGES[body["type"]], body)
    return message


def _build(kind: type[T], body: dict[str, Any]) -> T:
    hints = typing.get_type_hints(kind)
    known = {name: _value(hint, body[name]) for name, hint in hints.items() if name in body}
    try:
        return kind(**known)
    except TypeError as exc:
        raise ValueError(f"{kind.__name__} lacks a field: {exc}") from exc


def _value(hint: object, value: object) -> object:
    """Makes a nested record of a nested object; anything else is as JSON has it."""
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value)
    if isinstance(hint, types.GenericAlias) and isinstance(value, list):
        return [_value(hint.__args__[0], item) for item in value]
    return value

"""Requests that are odd in one place, each with the answer expected of it; said once, and asked as JSON over HTTP and
as messages over gRPC. Used by the tests of the contract, and by those of the services on both databases."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from tunesmith.v1 import asset_pb2, asset_service_pb2, tune_service_pb2

Place = tuple[str | int, ...]

TAKEN = ""
_ARMS = {"details": "details.lora_tune", "data": "data.checkpoint"}  # flat in JSON

EMOJI = "\U0001f469\u200d\U0001f52c\U0001f1e6\U0001f1f9"
BIDI = "a\u202egnp.exe\u2066"
STACKED = "Z\u0351\u036b\u0343" * 20
UNKNOWN = "asset_00000000000000000000000000"
INT32, INT64 = 2**31, 2**63


@dataclass(frozen=True)
class Odd:
    """One request of one rpc."""

    rpc: str
    place: Place
    """Where in the JSON body."""
    value: Any
    """What stands there."""
    reason: str = TAKEN
    """Of the violation, over gRPC."""
    type: str = "value_error"
    """Of the fault, over HTTP."""

    @property
    def loc(self) -> list[str | int]:
        """Where the fault is told over HTTP."""
        return ["body", *self.place]

    @property
    def field(self) -> str:
        """Where it is told over gRPC."""
        path = ""
        for step in self.place:
            if isinstance(step, int):
                path += f"[{step}]"
            elif path == "metadata":
                path += f'["{step}"]'
            else:
                path += f".{_ARMS.get(step, step)}" if path else _ARMS.get(step, step)
        return path

    def body(self, file_id: str) -> dict[str, Any]:
        """The request as JSON: NaN and infinity stand there as Python writes them."""
        body = copy.deepcopy(_BODIES[self.rpc](file_id))
        inner: Any = body
        for step in self.place[:-1]:
            inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
        inner[self.place[-1]] = self.value
        return body

    def message(self, file_id: str) -> Any:
        """The request as a message."""
        request = _MESSAGES[self.rpc]()
        _fill(request, self.body(file_id))
        return request

    def __str__(self) -> str:
        said = ascii(self.value)
        return f"{self.rpc} {'.'.join(map(str, self.place))} {said if len(said) < 30 else f'{said[:20]}.. {len(said)}'}"


def _tune(file_id: str) -> dict[str, Any]:
    details = {
        "tune_type": "lora_tune",
        "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
        "files": [{"file_id": file_id}],
        "steps": 10,
        "trigger_words": ["sks"],
    }
    return {"name": "odd", "details": details}


def _asset(file_id: str) -> dict[str, Any]:
    return {"asset_type": "checkpoint", "name": "odd", "data": {"asset_type": "checkpoint", "engine": "image/x"}}


_BODIES = {"CreateTune": _tune, "CreateAsset": _asset}
_MESSAGES: dict[str, type[Message]] = {
    "CreateTune": tune_service_pb2.CreateTuneRequest,
    "CreateAsset": asset_service_pb2.CreateAssetRequest,
}


def _fill(message: Any, values: dict[str, Any]) -> None:
    """By hand, not by our own reader of JSON, which would refuse what is to reach the rules."""
    for key, value in values.items():
        if key in _ARMS:
            arm = getattr(getattr(message, key), _ARMS[key].rpartition(".")[2])
            _fill(arm, {inner: each for inner, each in value.items() if not inner.endswith("_type")})
        elif key == "asset_type":
            message.asset_type = asset_pb2.ASSET_TYPE_CHECKPOINT
        elif key == "metadata":
            message.metadata.update(value)
        elif isinstance(value, dict):
            _fill(getattr(message, key), value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                _fill(getattr(message, key).add(), each)
        elif isinstance(value, list):
            getattr(message, key).extend(value)
        else:
            setattr(message, key, value)


def texts() -> Iterator[Odd]:
    """Names, captions, trigger words and whatever else is text."""
    for rpc in ("CreateTune", "CreateAsset"):
        name = ("name",)
        for value in (
            "n" * 128,
            EMOJI,
            BIDI,
            STACKED,
            "\U0001f98a" * 128,
            " ",
            "...",
            "'; DROP TABLE tunes; --",
            "<b>",
        ):
            yield Odd(rpc, name, value)
        yield Odd(rpc, name, "", "STRING_MIN_LEN", "string_too_short")
        for value in ("n" * 129, "\U0001f98a" * 129, "x" * 10_000):
            yield Odd(rpc, name, value, "STRING_MAX_LEN", "string_too_long")
        for value in ("a\0b", "../../etc/passwd", "a:b", "a%2fb", "a?b", "a#b", "a\nb", "a\x7fb"):
            yield Odd(rpc, name, value, "STRING_PATTERN", "string_pattern_mismatch")
        for value in (".", ".."):
            yield Odd(rpc, name, value, "NAME_DOTS")
        yield from _prose(rpc, ("description",))
    yield from _prose("CreateTune", ("details", "files", 0, "caption"))
    word = ("details", "trigger_words", 0)
    for value in (EMOJI, BIDI, STACKED, "w" * 128, "two words", "../x"):
        yield Odd("CreateTune", word, value)
    yield Odd("CreateTune", word, "", "STRING_MIN_LEN", "string_too_short")
    yield Odd("CreateTune", word, "w" * 129, "STRING_MAX_LEN", "string_too_long")
    for value in (" ", "a\nb", "a\0b", "a\x85b"):
        yield Odd("CreateTune", word, value, "STRING_PATTERN", "string_pattern_mismatch")
    for value in ("v" * 512, BIDI, ""):
        yield Odd("CreateTune", ("metadata", "key"), value)
    yield Odd("CreateTune", ("metadata", "key"), "v" * 513, "STRING_MAX_LEN", "string_too_long")
    yield Odd("CreateTune", ("metadata", "key"), "\0", "CONTAINS_NUL")
    yield Odd("CreateTune", ("metadata", "k" * 64), "value")
    yield Odd("CreateTune", ("metadata", "k" * 65), "value", "STRING_MAX_LEN", "string_too_long")
    yield Odd("CreateTune", ("request_id",), "r" * 256, "STRING_MAX_LEN", "string_too_long")
    yield Odd("CreateTune", ("request_id",), "a\nb", "STRING_PATTERN", "string_pattern_mismatch")


def _prose(rpc: str, place: Place) -> Iterator[Odd]:
    """Text for people: nearly anything."""
    for value in ("", "x" * 10_000, "../../etc/passwd", BIDI, EMOJI, STACKED, "a\r\n\tb", "\ufeff\uffff"):
        yield Odd(rpc, place, value)
    yield Odd(rpc, place, "x" * 10_001, "STRING_MAX_LEN", "string_too_long")
    yield Odd(rpc, place, "a\0b", "CONTAINS_NUL")


def numbers() -> Iterator[Odd]:
    """Huge, negative, and none at all."""
    for value in (1, 100_000):
        yield Odd("CreateTune", ("details", "steps"), value)
    for value in (0, -1, 100_001, INT32 - 1, -INT32):
        yield Odd("CreateTune", ("details", "steps"), value, "INT32_GTE_LTE")
    for value in (0, 2**32 - 1):
        yield Odd("CreateTune", ("details", "seed"), value)
    for value in (-1, 2**32, INT64 - 1, -INT64):
        yield Odd("CreateTune", ("details", "seed"), value, "INT64_GTE_LTE")
    for value in (-101, 101, INT32 - 1, -INT32):
        yield Odd("CreateTune", ("priority",), value, "INT32_GTE_LTE")
    for value in (0, 257, -INT32):
        yield Odd("CreateTune", ("details", "hyperparameters", "rank"), value, "INT32_GTE_LTE")
    for name, rule in (("learning_rate", "DOUBLE_GT_LTE"), ("prior_preservation_weight", "DOUBLE_GTE_LTE")):
        for broken in (math.nan, math.inf, -math.inf, 1e308, -1.0):
            yield Odd("CreateTune", ("details", "hyperparameters", name), broken, rule)
    yield Odd("CreateTune", ("details", "hyperparameters", "learning_rate"), 5e-324)
    yield Odd("CreateTune", ("details", "hyperparameters", "learning_rate"), -0.0, "DOUBLE_GT_LTE")


def lists() -> Iterator[Odd]:
    """None, too many, the same again; and ids of nothing."""
    files, checkpoint = ("details", "files"), ("details", "base_checkpoint", "checkpoint_id")
    one, first = {"file_id": UNKNOWN}, (*files, 0, "file_id")
    yield Odd("CreateTune", files, [], "REPEATED_MIN_ITEMS", "too_short")
    yield Odd("CreateTune", files, [one, one], "FILES_UNIQUE")
    for many in (1001, 10_000):
        yield Odd("CreateTune", files, [{"file_id": str(n)} for n in range(many)], "REPEATED_MAX_ITEMS", "too_long")
    yield Odd("CreateTune", ("details", "trigger_words"), [], "REPEATED_MIN_ITEMS", "too_short")
    yield Odd("CreateTune", ("details", "trigger_words"), ["a", "b"], "REPEATED_MAX_ITEMS", "too_long")
    yield Odd("CreateTune", ("metadata",), {str(n): "v" for n in range(17)}, "MAP_MAX_PAIRS", "too_long")
    yield Odd("CreateTune", first, "", "STRING_MIN_LEN", "string_too_short")
    yield Odd("CreateTune", first, "f" * 129, "STRING_MAX_LEN", "string_too_long")
    for value in (UNKNOWN, "../../etc/passwd", EMOJI, "f" * 128):
        yield Odd("CreateTune", first, value, "INVALID_REFERENCE")
    yield Odd("CreateTune", checkpoint, "c" * 258, "STRING_MAX_LEN", "string_too_long")
    for value in (UNKNOWN, "nobody:nothing", "a:b:c", ":", EMOJI):
        yield Odd("CreateTune", checkpoint, value, "INVALID_REFERENCE")
    yield Odd("CreateAsset", ("data", "engine"), "", "STRING_MIN_LEN", "string_too_short")
    yield Odd("CreateAsset", ("transfer_api_type",), "ftp", "STRING_IN", "enum")


ALL = [*texts(), *numbers(), *lists()]

"""The judgement of weights by their header."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from safetensors.numpy import save

from gateway import weights
from gateway.weights import BadWeights, Weights


def judged(whole: bytes) -> Weights:
    """As uploads does it: the first eight bytes, the header, the size."""
    length = weights.header_bytes(whole[: weights.PREFIX], len(whole))
    return weights.judge(whole[weights.PREFIX : weights.PREFIX + length], len(whole))


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(start: int, stop: int, *, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def real_file() -> bytes:
    import numpy as np

    tensors: dict[str, Any] = {
        "a": np.zeros((3, 4), np.float16),
        "b": np.zeros(2, np.float32),
        "empty": np.zeros(0, np.float16),
    }
    return bytes(save(tensors, {"ss_network_dim": "4"}))


def test_real_file_is_good_and_its_main_number_format_is_told() -> None:
    assert judged(real_file()) == Weights("fp16", 3)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (b"", "EMPTY"),
        (b"short", "NOT_SAFETENSORS"),
        (pickle.dumps({"state_dict": list(range(50))}), "PICKLE"),
        (b"PK\3\4" + bytes(100), "PICKLE"),
        ((2**40).to_bytes(8, "little") + b"{}", "NOT_SAFETENSORS"),
        ((500).to_bytes(8, "little") + b'{"a":', "TRUNCATED"),
        (real_file()[:-1], "TRUNCATED"),
        (real_file() + b"more", "BAD_HEADER"),
        (file_of(b"{not json}"), "BAD_HEADER"),
        (file_of(b"\xff\xfe"), "BAD_HEADER"),
        (file_of(b"[" * 100_000), "BAD_HEADER"),
        (file_of([1, 2]), "BAD_HEADER"),
        (file_of({}), "NO_TENSORS"),
        (file_of({"__metadata__": {}}), "NO_TENSORS"),
        (file_of({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4), "b": tensor(6, 8)}, bytes(8)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4, shape=[5])}, bytes(4)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4, dtype="F16")}, bytes(4)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4, dtype="X9")}, bytes(4)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4, shape=[-4])}, bytes(4)), "BAD_HEADER"),
        (file_of({"a": tensor(0, 4, shape=[True] * 4)}, bytes(4)), "BAD_HEADER"),
        (file_of({"a": "nothing"}), "BAD_HEADER"),
        (file_of({"a": {"dtype": "U8"}}), "BAD_HEADER"),
    ],
)
def test_bad_file_is_refused_with_its_reason(whole: bytes, reason: str) -> None:
    with pytest.raises(BadWeights) as caught:
        judged(whole)

    assert caught.value.reason == reason
    assert caught.value.details

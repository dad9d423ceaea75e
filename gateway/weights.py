"""Judges uploaded weights by their header: safetensors, whole, and nothing else. Called by uploads; knows no asset.

The header is JSON behind its length in eight bytes; the tensors' bytes follow it without gaps. Pickle, which can run
code when it is loaded, is refused whatever the file is called.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

PREFIX = 8  # bytes of the header's length, little-endian
LONGEST_HEADER = 4 * 2**20  # bytes; SDXL in one file has 0.4 MB

#: Bits of each number format that safetensors 0.8 knows.
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
#: The contract's word for the format that most bytes are in; it has none for others.
DATA_TYPES = {"F16": "fp16", "F32": "fp32", "I8": "int8"}


class BadWeights(ValueError):
    """The file is refused: a stable word and a sentence."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason
        self.details = details


@dataclass(frozen=True)
class Weights:
    """What the header says."""

    #: fp16, fp32 or int8; None where the contract has no word for it.
    data_type: str | None
    #: How many.
    tensors: int


def header_bytes(start: bytes, size_bytes: int) -> int:
    """How long the header is, by the file's first eight bytes.

    Raises:
        BadWeights: It is not a safetensors file, or not all of one.
    """
    if not size_bytes:
        raise BadWeights("EMPTY", "the upload has no bytes")
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BadWeights("PICKLE", "the file is a pickle (.ckpt, .pt, .bin), which could run code; upload .safetensors")
    length = int.from_bytes(start[:PREFIX], "little")
    if len(start) < PREFIX or not 2 <= length <= LONGEST_HEADER:
        raise BadWeights("NOT_SAFETENSORS", "the file does not begin as a safetensors file does")
    if PREFIX + length > size_bytes:
        raise BadWeights("TRUNCATED", "the file ends within its header")
    return length


def judge(header: bytes, size_bytes: int) -> Weights:
    """Checks that the header's tensors are exactly the file's bytes.

    Raises:
        BadWeights: They are not.
    """
    tensors = parse(header)
    tensors.pop("__metadata__", None)
    if not tensors:
        raise BadWeights("NO_TENSORS", "the file holds no tensors")
    spans = sorted(span(name, tensor) for name, tensor in tensors.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            what = "overlaps the one before it" if start < end else "leaves a gap before it"
            raise BadWeights("BAD_HEADER", f"the tensor {name[:100]!r} {what}")
        end = stop
    there = size_bytes - PREFIX - len(header)
    if end > there:
        raise BadWeights("TRUNCATED", f"the tensors take {end} bytes, and the file has {there} for them")
    if end < there:
        raise BadWeights("BAD_HEADER", f"{there - end} bytes behind the tensors belong to none")
    return Weights(main_type(tensors), len(tensors))


def parse(header: bytes) -> dict[str, Any]:
    """Reads the header's JSON."""
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError) as exc:
        raise BadWeights("BAD_HEADER", "the file's header is not JSON") from exc
    if not isinstance(tensors, dict):
        raise BadWeights("BAD_HEADER", "the file's header is not a JSON object")
    return tensors


def span(name: str, tensor: object) -> tuple[int, int, str]:
    """Where one tensor lies: start, end, name."""
    match tensor:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            dtype in BITS and 0 <= start <= stop and all(type(edge) is int and 0 <= edge < 2**48 for edge in shape)
        ):
            if math.prod(shape) * BITS[dtype] == (stop - start) * 8:
                return start, stop, name
            raise BadWeights("BAD_HEADER", f"the tensor {name[:100]!r} has another size than its shape says")
        case _:
            raise BadWeights("BAD_HEADER", f"the tensor {name[:100]!r} is not described as safetensors wants it")


def main_type(tensors: dict[str, Any]) -> str | None:
    """The format that most bytes are in."""
    totals: dict[str, int] = {}
    for tensor in tensors.values():
        start, stop = tensor["data_offsets"]
        totals[tensor["dtype"]] = totals.get(tensor["dtype"], 0) + stop - start
    return DATA_TYPES.get(max(totals, key=lambda dtype: totals[dtype]))

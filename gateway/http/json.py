"""JSON text and values <-> messages, in the JSON profile of the contract (docs/api.md).

Called by transcoding and events for what goes over HTTP, and by wire for the store's JSON columns; knows no HTTP.

    written   every key is there, in snake_case; enums in lower case without the type's prefix; 64-bit integers are
              numbers; times are RFC 3339 with "Z"; an unset optional or message field, an UNSPECIFIED enum, NaN and
              infinity are null; a tagged union is flattened
    read      unknown keys are ignored unless the message is strict; null is unset; numbers are not strings, true is not
              1; every fault is told at once
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from gateway.http.fault import Fault, Loc
from gateway.http.reading import Repeated, reader
from gateway.http.writing import writer

# Where a string ends does not matter here, so an unfinished one is one token: no text makes this quadratic.
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[\[{]|[\]}]', re.DOTALL)

# Likewise: what is matched without its group is a string.
_CONSTANT = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|(NaN|-?Infinity)', re.DOTALL)
# Each number is one token too, whether it is an integer of too many digits or not.
_LONG = re.compile(
    r'"(?:[^"\\]++|\\.)*+"?+'
    rf"|(-?[0-9]{{{sys.get_int_max_str_digits() + 1},}}+)(?![.eE])"
    r"|-?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+",
    re.DOTALL,
)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class MalformedError(ValueError):
    """The text is no JSON that we read. `values`: those of one that is JSON but for numbers that are none."""

    def __init__(self, msg: str, offset: int, values: Any = None) -> None:  # noqa: ANN401
        super().__init__(msg)
        is_read = values is not None
        self.fault = Fault(("body", offset), f"JSON decode error: {msg}", "json_invalid", is_read=is_read)
        self.values = values


def to_json(message: Message) -> dict[str, Any]:
    """Returns the message as JSON values."""
    return cast(dict[str, Any], writer(cast(Descriptor, message.DESCRIPTOR))(message))


def from_json(value: object, message: Message, loc: Loc = ()) -> list[Fault]:
    """Reads JSON values into the message, and returns every fault; what could be read stands in the message."""
    faults: list[Fault] = []
    reader(cast(Descriptor, message.DESCRIPTOR))(message, value, loc, faults)
    return faults


def dumps(value: object) -> bytes:
    """Returns JSON text in UTF-8, without spaces."""
    return _encode(value).encode()


def loads(text: bytes, depth: int = 64) -> Any:  # noqa: ANN401
    """Returns the values of JSON text in UTF-8.

    Raises:
        MalformedError: It is not JSON (NaN and Infinity are not), or nested deeper than `depth`.
    """
    _refuse_deep(text, depth)
    constants: list[str] = []
    try:
        found = json.loads(text.decode(), object_pairs_hook=_object, parse_constant=partial(_constant, constants))
    except json.JSONDecodeError as exc:
        raise MalformedError(exc.msg, exc.pos) from exc
    except UnicodeDecodeError as exc:
        raise MalformedError("not UTF-8", exc.start) from exc
    except RecursionError as exc:
        raise MalformedError("nested too deeply", 0) from exc
    except ValueError as exc:  # int() takes no more than some thousand digits, and does not say where
        raise MalformedError("a number has too many digits", _offset(_LONG, text)) from exc
    if constants:
        raise MalformedError(f"{constants[0]} is not JSON", _offset(_CONSTANT, text), found)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    repeated = Repeated(values)
    repeated.keys_repeated = frozenset(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return repeated


def _constant(constants: list[str], name: str) -> float:
    """Reads a number that is none, and keeps its name: what else is wrong with the body is told with it."""
    constants.append(name)
    return float(name)


def _offset(wanted: re.Pattern[str], text: bytes) -> int:
    """Where it stands for the first time, in characters."""
    return next((match.start() for match in wanted.finditer(text.decode()) if match[1]), 0)


def _refuse_deep(text: bytes, depth: int) -> None:
    """Counts before the parser recurses. Most bodies have too few brackets to be worth a look."""
    if text.count(b"{") + text.count(b"[") <= depth:
        return
    brackets: Iterable[re.Match[bytes]] = _BRACKET.finditer(text)
    level = 0
    for match in brackets:
        if match[0] in (b"{", b"["):
            level += 1
            if level > depth:
                raise MalformedError(f"nested deeper than {depth}", match.start())
        elif match[0] in (b"}", b"]"):
            level -= 1

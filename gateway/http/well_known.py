"""Reads JSON values into google.protobuf's well-known messages, whose JSON is not that of their fields.

Called by reading; knows no message of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from gateway.http.fault import Fault, Loc, Reader, other_than, unfit
from gateway.http.scalars import Converter, Unreadable, double, duration, string, timestamp

# google.protobuf nests three messages for each level of a Struct, and parses no deeper than a hundred.
STRUCT_DEPTH = 24


def _seconds_reader(convert: Callable[[Any], tuple[int, int]]) -> Reader:
    def read(message: Any, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        try:
            message.seconds, message.nanos = convert(value)
        except Unreadable as fault:
            faults.append(unfit(fault, value, loc))

    return read


def _empty(message: Message, value: object, loc: Loc, faults: list[Fault]) -> None:
    if not isinstance(value, dict):
        faults.append(other_than("an object", "dict_type", value, loc))


def _struct(message: Any, value: Any, loc: Loc, faults: list[Fault], depth: int = 0) -> None:  # noqa: ANN401
    if not isinstance(value, dict):
        faults.append(other_than("an object", "dict_type", value, loc))
        return
    for key, element in value.items():
        try:
            _value(message.fields[string(key)], element, (*loc, key), faults, depth + 1)
        except Unreadable as fault:
            faults.append(unfit(fault, key, (*loc, key)))


def _list_value(message: Any, value: Any, loc: Loc, faults: list[Fault], depth: int = 0) -> None:  # noqa: ANN401
    if not isinstance(value, list):
        faults.append(other_than("an array", "list_type", value, loc))
        return
    for index, element in enumerate(value):
        _value(message.values.add(), element, (*loc, index), faults, depth + 1)


def _value(message: Any, value: Any, loc: Loc, faults: list[Fault], depth: int = 0) -> None:  # noqa: ANN401
    if depth > STRUCT_DEPTH:
        faults.append(Fault(loc, f"Input should be nested no deeper than {STRUCT_DEPTH}", "value_error"))
        return
    try:
        if value is None:
            message.null_value = 0
        elif isinstance(value, bool):
            message.bool_value = value
        elif isinstance(value, str):
            message.string_value = string(value)
        elif isinstance(value, dict):
            message.struct_value.SetInParent()
            _struct(message.struct_value, value, loc, faults, depth)
        elif isinstance(value, list):
            message.list_value.SetInParent()
            _list_value(message.list_value, value, loc, faults, depth)
        else:
            message.number_value = double(value)
    except Unreadable as fault:
        faults.append(unfit(fault, value, loc))


#: Those that one text gives.
TEXTUAL: dict[str, Converter] = {
    "google.protobuf.Timestamp": timestamp,
    "google.protobuf.Duration": duration,
}

READERS: dict[str, Reader] = {
    **{name: _seconds_reader(convert) for name, convert in TEXTUAL.items()},
    "google.protobuf.Struct": _struct,
    "google.protobuf.ListValue": _list_value,
    "google.protobuf.Value": _value,
    "google.protobuf.Empty": _empty,
}

"""Writes messages in the JSON profile: one closure a type, made from its descriptor once.

Called by json; knows no JSON text: what it returns is for a JSON encoder. Every key is always there.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.http.profile import UNSPECIFIED, entry_of, enum_names, is_map, message_of, union_of

# Messages and their fields' values are Any here: a closure is made for a type, and mypy cannot follow a descriptor.
Writer = Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT = 2**53  # doubles below it hold every integer

_writers: dict[str, Writer] = {}


def writer(descriptor: Descriptor) -> Writer:
    """Returns what turns a message of the type into JSON values."""
    name = descriptor.full_name
    if name in _WELL_KNOWN:
        return _WELL_KNOWN[name]
    if name not in _writers:
        _writers[name] = lambda message: _writers[name](message)  # for a type that contains itself
        _writers[name] = _message_writer(descriptor)
    return _writers[name]


def field_writer(field: FieldDescriptor) -> Writer:
    """Returns what turns this field of a message into JSON values: takes the message."""
    name = field.name
    if is_map(field):
        return _map_writer(field)
    if field.is_repeated:
        each = _element_writer(field)
        if each is None:
            return lambda message: list(getattr(message, name))
        return lambda message: [each(element) for element in getattr(message, name)]
    convert = _singular_writer(field)
    if field.has_presence:
        if convert is None:
            return lambda message: getattr(message, name) if message.HasField(name) else None
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    if convert is None:
        return attrgetter(name)
    return lambda message: convert(getattr(message, name))


def _message_writer(descriptor: Descriptor) -> Writer:
    union = union_of(descriptor)
    arms = [] if union is None else union.oneof.fields
    fields = [(field.name, field_writer(field)) for field in descriptor.fields if field not in arms]
    if union is None:
        return lambda message: {name: write(message) for name, write in fields}
    tag, oneof = union.tag, union.oneof.name
    flattened = {arm.name: (value, writer(message_of(arm))) for value, arm in union.arms.items()}

    def write_union(message: Message) -> dict[str, Any]:
        arm = message.WhichOneof(oneof)
        own = {name: write(message) for name, write in fields}
        if arm is None:
            return {tag: None, **own}
        value, write_arm = flattened[arm]
        return {tag: value, **own, **write_arm(getattr(message, arm))}

    return write_union


def _map_writer(field: FieldDescriptor) -> Writer:
    name = field.name
    key, value = entry_of(field)
    as_key = (lambda k: "true" if k else "false") if key.type == FieldDescriptor.TYPE_BOOL else str
    convert = _element_writer(value)
    if convert is None:
        return lambda message: {as_key(k): v for k, v in sorted(getattr(message, name).items())}
    # The order of a map is not part of its value, so sorted: equal messages give equal text.
    return lambda message: {as_key(k): convert(v) for k, v in sorted(getattr(message, name).items(), key=_first)}


def _first(pair: tuple[Any, Any]) -> Any:  # noqa: ANN401 - a map's key: str, int or bool
    return pair[0]


def _element_writer(field: FieldDescriptor) -> Writer | None:
    """In a list null would not be an element, so UNSPECIFIED keeps its name there."""
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return lambda number: names.get(number, number)
    return _singular_writer(field)


def _singular_writer(field: FieldDescriptor) -> Writer | None:
    """Returns what converts one value; None where Python's value is JSON's."""
    if field.message_type is not None:
        return writer(field.message_type)
    if field.enum_type is not None:
        names = {number: None if name == UNSPECIFIED else name for number, name in enum_names(field.enum_type).items()}
        return lambda number: names.get(number, number)
    return _SCALARS.get(field.type)


def _double(value: float) -> float | None:
    """JSON knows no NaN and no infinity: they are null."""
    return value if math.isfinite(value) else None


def _float(value: float) -> float | None:
    """Returns the shortest decimal that is the same 32-bit number: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return None
    short = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next(number for number in short if struct.pack("f", number) == struct.pack("f", value))


def _bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _timestamp(message: Any) -> str:  # noqa: ANN401
    """RFC 3339 in UTC; a fraction only where there is one, of six digits, or of nine where six do not do."""
    text = (_EPOCH + timedelta(seconds=message.seconds)).isoformat()[:19]
    return f"{text}{_fraction(message.nanos, least=6)}Z"


def _duration(message: Any) -> str:  # noqa: ANN401
    sign = "-" if message.seconds < 0 or message.nanos < 0 else ""
    return f"{sign}{abs(message.seconds)}{_fraction(abs(message.nanos), least=3)}s"


def _fraction(nanos: int, *, least: int) -> str:
    if not nanos:
        return ""
    digits = f"{nanos:09d}"
    while len(digits) > least and digits.endswith("000"):
        digits = digits[:-3]
    return f".{digits}"


def _struct(message: Any) -> dict[str, Any]:  # noqa: ANN401
    return {key: _value(value) for key, value in sorted(message.fields.items())}


def _list_value(message: Any) -> list[Any]:  # noqa: ANN401
    return [_value(value) for value in message.values]


def _value(message: Any) -> Any:  # noqa: ANN401
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        number = message.number_value
        # google.protobuf.Value has doubles only; who put 512 in wants to read 512.
        return int(number) if number.is_integer() and abs(number) < _EXACT else _double(number)
    if kind == "struct_value":
        return _struct(message.struct_value)
    if kind == "list_value":
        return _list_value(message.list_value)
    return None if kind in (None, "null_value") else getattr(message, kind)


def _empty(message: Any) -> dict[str, Any]:  # noqa: ANN401
    return {}


_SCALARS: dict[int, Writer] = {
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_FLOAT: _float,
    FieldDescriptor.TYPE_BYTES: _bytes,
}

_WELL_KNOWN: dict[str, Writer] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _struct,
    "google.protobuf.ListValue": _list_value,
    "google.protobuf.Value": _value,
    "google.protobuf.Empty": _empty,
}

"""Checks and converts single values, of JSON and of text, for scalar fields. Called by reading; knows no message.

What a field does not want raises Unreadable, with the word that pydantic has for it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from gateway.http.profile import UNSPECIFIED, enum_names

SHOWN = 60  # characters of a value that are repeated

# Returns what protobuf takes, or raises Unreadable.
Converter = Callable[[Any], Any]


class Unreadable(ValueError):
    """The value is not what the field wants."""

    def __init__(self, msg: str, kind: str) -> None:
        super().__init__(msg)
        self.msg = msg
        self.kind = kind


def shown(value: Any) -> str:  # noqa: ANN401
    """Returns a JSON value, or the start of it, for a sentence."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{json.dumps(value[:SHOWN])}..., {len(value)} characters"
    text = json.dumps(value)
    return text if isinstance(value, str) or len(text) <= SHOWN else f"{text[:SHOWN]}..., {len(text)} digits"


def converter(field: FieldDescriptor) -> Converter:
    """Returns what checks and converts one JSON value for a scalar field."""
    if field.enum_type is not None:
        return _enum(field, has_unspecified=field.is_repeated)  # elsewhere it is null: see writing
    if field.type in INTEGERS:
        return _integer(*INTEGERS[field.type], *_range(field))
    return _SCALARS[field.type]


def parser(field: FieldDescriptor) -> Converter:
    """Returns what reads the text of a query or path parameter, a header or a map's key for a scalar field."""
    if field.enum_type is not None:
        return _enum(field, has_unspecified=False)
    convert = converter(field)
    if field.type in INTEGERS:
        return lambda text: convert(_integer_of(text))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _bool_of
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return lambda text: convert(_number_of(text))
    return convert


def either(expected: str) -> str:
    """Turns "'a', 'b', 'c'" into "'a', 'b' or 'c'"."""
    return " or ".join(expected.rsplit(", ", 1))


def _enum(field: FieldDescriptor, *, has_unspecified: bool) -> Converter:
    numbers = {name: number for number, name in enum_names(field.enum_type).items()}
    if not has_unspecified:
        numbers.pop(UNSPECIFIED, None)
    expected = either(
        ", ".join(f"'{name}'" for name in sorted(numbers, key=numbers.__getitem__) if name != UNSPECIFIED)
    )

    def convert(value: Any) -> int:  # noqa: ANN401
        number = numbers.get(value) if isinstance(value, str) else None
        if number is None:
            raise Unreadable(f"Input should be {expected}", "enum")
        return number

    return convert


def _range(field: FieldDescriptor) -> tuple[int, int]:
    """The range of an integer that the rules allow: what a caller is told who exceeds even that of its type."""
    least, most = INTEGERS[field.type]
    found = field.GetOptions().Extensions[validate_pb2.field]
    kind = found.WhichOneof("type")
    if kind not in (None, "repeated", "map"):
        rules = getattr(found, kind)
        least = rules.gte if rules.HasField("gte") else rules.gt + 1 if rules.HasField("gt") else least
        most = rules.lte if rules.HasField("lte") else rules.lt - 1 if rules.HasField("lt") else most
    return least, most


def _integer(least: int, most: int, least_allowed: int, most_allowed: int) -> Converter:
    def convert(value: Any) -> int:  # noqa: ANN401
        if type(value) is float and math.isfinite(value):
            # JSON has one kind of number: 10.0 is ten. A fraction is a mistake.
            if not value.is_integer():
                raise Unreadable("Input should be an integer, without a fractional part", "int_from_float")
            value = int(value)
        if type(value) is not int:  # a bool is none, though Python says so
            raise Unreadable("Input should be a valid integer", "int_type")
        if value < least:
            raise Unreadable(f"Input should be greater than or equal to {least_allowed}", "greater_than_equal")
        if value > most:
            raise Unreadable(f"Input should be less than or equal to {most_allowed}", "less_than_equal")
        return value

    return convert


def string(value: Any) -> str:  # noqa: ANN401
    """Converts to a string that UTF-8 can hold."""
    if type(value) is not str:
        raise Unreadable("Input should be a valid string", "string_type")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise Unreadable("Input should be a valid string, without lone surrogates", "string_unicode") from exc
    return value


def _bool(value: Any) -> bool:  # noqa: ANN401
    if type(value) is not bool:
        raise Unreadable("Input should be a valid boolean", "bool_type")
    return value


def double(value: Any) -> float:  # noqa: ANN401
    """Converts to a finite number."""
    if type(value) not in (int, float):
        raise Unreadable("Input should be a valid number", "float_type")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Unreadable("Input should be a finite number", "finite_number")
    return number


def _float(value: Any) -> float:  # noqa: ANN401
    number = double(value)
    try:
        return cast(float, struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError as exc:
        raise Unreadable("Input should be a finite 32-bit number", "finite_number") from exc


def _bytes(value: Any) -> bytes:  # noqa: ANN401
    if type(value) is not str:
        raise Unreadable("Input should be a base64 string", "bytes_type")
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Unreadable("Input should be a base64 string", "value_error") from exc


# Scalars, from text.


def _integer_of(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise Unreadable("Input should be a valid integer", "int_parsing")
    return int(text)


def _number_of(text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise Unreadable("Input should be a valid number", "float_parsing")
    return float(text)


def _bool_of(text: str) -> bool:
    # "True" is what a Python program sends that formats a bool without thinking.
    truth = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if truth is None:
        raise Unreadable("Input should be 'true', 'false', '1' or '0'", "bool_parsing")
    return truth


# Times, which are messages to protobuf.

_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d{2}):(\d{2}))",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(value: Any) -> tuple[int, int]:  # noqa: ANN401
    """Converts RFC 3339 text to seconds since 1970 and nanoseconds."""
    if type(value) is not str:
        raise Unreadable("Input should be a string with a date and time", "datetime_type")
    match = _TIME.fullmatch(value)
    try:
        if match is None:
            raise ValueError("not RFC 3339")
        day, time, fraction, sign, hours, minutes = match.groups()
        moment = datetime.fromisoformat(f"{day}T{time}+00:00")
        if sign:
            if int(hours) > 23 or int(minutes) > 59:
                raise ValueError("no such offset")
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            moment += -offset if sign == "+" else offset
    except (ValueError, OverflowError) as exc:
        wanted = "2026-01-31T12:00:00Z"
        raise Unreadable(f"Input should be an RFC 3339 date and time, such as {wanted}", "datetime_parsing") from exc
    since = moment - _EPOCH
    return since.days * 86400 + since.seconds, int((fraction or "").ljust(9, "0"))


_SPAN = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s", re.ASCII)
_LONGEST = 315_576_000_000  # seconds, ten thousand years: google.protobuf.Duration's own bound


def duration(value: Any) -> tuple[int, int]:  # noqa: ANN401
    """Converts text such as 1.5s to seconds and nanoseconds, both with its sign."""
    if type(value) is not str:
        raise Unreadable("Input should be a string with a duration in seconds", "time_delta_type")
    match = _SPAN.fullmatch(value)
    if match is None or int(match[2]) > _LONGEST:
        raise Unreadable("Input should be a duration in seconds, such as 1.5s", "time_delta_parsing")
    sign = -1 if match[1] else 1
    return sign * int(match[2]), sign * int((match[3] or "").ljust(9, "0"))


_SCALARS: dict[int, Converter] = {
    FieldDescriptor.TYPE_STRING: string,
    FieldDescriptor.TYPE_BYTES: _bytes,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_DOUBLE: double,
    FieldDescriptor.TYPE_FLOAT: _float,
}

_INT32, _UINT32 = (-(2**31), 2**31 - 1), (0, 2**32 - 1)
_INT64, _UINT64 = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
INTEGERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
}

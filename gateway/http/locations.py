"""Where a violated proto field stands in the HTTP request: `details.lora_tune.files[1].file_id` is
("body", "details", "files", 1, "file_id").

Called by transcoding once an rpc was refused; knows descriptors and bindings, no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor

from gateway.http.bindings import Binding
from gateway.http.fault import Fault, Loc
from gateway.http.profile import entry_of, is_map, union_of
from gateway.status import Violation

_STEP = re.compile(r'\.?([^.\[\]"]+)|\[((?:"(?:[^"\\]|\\.)*")|-?[0-9]+|true|false)\]')

# The rules of protovalidate whose violation pydantic has a word for. Others are "value_error".
TYPES: dict[str, str] = {
    "REQUIRED": "missing",
    "STRING_MIN_LEN": "string_too_short",
    "STRING_MAX_LEN": "string_too_long",
    "STRING_PATTERN": "string_pattern_mismatch",
    "STRING_IN": "enum",
    "ENUM_DEFINED_ONLY": "enum",
    "REPEATED_MIN_ITEMS": "too_short",
    "REPEATED_MAX_ITEMS": "too_long",
    "MAP_MIN_PAIRS": "too_short",
    "MAP_MAX_PAIRS": "too_long",
}


def fault(binding: Binding, violation: Violation, given: Mapping[str, Loc], body: object) -> Fault:
    """Returns the violation as the HTTP caller sees it.

    Args:
        binding: How the request was read.
        violation: What the rpc was refused for.
        given: Field -> place, for the fields that a query parameter, a header or the path gave.
        body: The JSON values of the body. A rule on a key that is not there is broken by its absence.
    """
    loc = locate(binding, violation.field, given)
    if _is_absent(loc, given, body):
        return Fault(loc, "Field required", "missing")
    return Fault(loc, violation.description, TYPES.get(violation.reason, "value_error"))


def locate(binding: Binding, field_path: str, given: Mapping[str, Loc]) -> Loc:
    """Returns the place of a proto field path in a request read by the binding."""
    steps = _steps(field_path)
    names = ".".join(str(step) for step in steps)
    for field, loc in given.items():
        if names == field or names.startswith(f"{field}."):
            return (*loc, *steps[field.count(".") + 1 :])
    if not steps:
        return ("body",) if binding.body else ("query",)
    if binding.body == "*":
        return ("body", *_flattened(binding.method.input_type, steps))
    if binding.body == steps[0]:
        inner = binding.method.input_type.fields_by_name[binding.body].message_type
        return ("body", *(_flattened(inner, steps[1:]) if inner is not None else steps[1:]))
    dotted = ".".join(step for step in steps if isinstance(step, str))
    return ("query", dotted, *(step for step in steps if isinstance(step, int)))


def _steps(field_path: str) -> list[str | int]:
    """Splits a path into field names, list indices and map keys."""
    steps: list[str | int] = []
    for match in _STEP.finditer(field_path):
        name, subscript = match.groups()
        key = name if name is not None else json.loads(subscript)
        steps.append(key if isinstance(key, (str, int)) and not isinstance(key, bool) else subscript)
    return steps


def _flattened(descriptor: Descriptor, steps: list[str | int]) -> Loc:
    """Leaves out the arms of tagged unions: their fields stand in the union's own object."""
    loc: list[str | int] = []
    inside: Descriptor | None = descriptor
    is_key = False
    for step in steps:
        if is_key or isinstance(step, int) or inside is None:
            loc.append(step)
            is_key = False
            continue
        union = union_of(inside)
        if union is not None and step == union.oneof.name:
            loc.append(union.tag)  # a rule on the oneof itself: the tag is what would have set it
            continue
        field = inside.fields_by_name.get(step)
        if field is None:
            loc.append(step)
            inside = None
            continue
        if union is None or field not in union.oneof.fields:
            loc.append(step)
        is_key = is_map(field)
        inside = entry_of(field)[1].message_type if is_key else field.message_type
    return tuple(loc)


def _is_absent(loc: Loc, given: Mapping[str, Loc], body: Any) -> bool:  # noqa: ANN401
    if any(loc[: len(place)] == place for place in given.values()):
        return False
    if loc[0] != "body":
        return len(loc) > 1
    value = body
    for step in loc[1:]:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return False
    return value is None

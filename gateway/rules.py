"""Judges a request by the rules that stand beside its fields in the protos: all of them at once.

Called by the interceptors for every request; knows no message by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.http.profile import entry_of, is_map
from gateway.status import Violation

# Below it no list is long enough to be worth a look before the rules are.
SMALL = 16 * 1024  # bytes


def violations(message: Message) -> list[Violation]:
    """Returns every rule that the message breaks.

    Of lists longer than they may be only that is told: a rule over a whole list may cost the square of its length.
    """
    if message.ByteSize() > SMALL:
        too_long = list(_too_long(message))
        if too_long:
            return too_long
    try:
        found = [violation.proto for violation in protovalidate.collect_violations(message)]
    except protovalidate.EvaluationError:  # it gives up on what takes too long
        return [Violation("", "is too large to be judged", "TOO_LARGE")]
    broken = [Violation(field_path(v.field), v.message, reason_of(v.rule_id)) for v in found]
    return broken + [Violation(path, "must not contain U+0000", "CONTAINS_NUL") for path in _nuls(message)]


def reason_of(rule_id: str) -> str:
    """Returns a rule's id as a stable word: `string.min_len` is STRING_MIN_LEN."""
    return rule_id.replace(".", "_").upper()


def field_path(field: Any) -> str:  # noqa: ANN401 - protovalidate's FieldPath, of its own protobuf library
    """Returns a field path as text: `files[1].file_id`, `metadata["k"]`. Empty for a rule on the request as a whole."""
    path = ""
    for element in () if field is None else field.elements:
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{json.dumps(element.subscript.value)}]"
    return path


def _too_long(message: Any) -> Iterator[Violation]:  # noqa: ANN401 - fields are got by name
    for path, most, unit in _bounded(message.DESCRIPTOR):
        found = message
        for name in path:
            found = getattr(found, name)
        if len(found) > most:
            reason = "REPEATED_MAX_ITEMS" if unit == "items" else "MAP_MAX_PAIRS"
            yield Violation(".".join(path), f"must contain at most {most} {unit}, not {len(found)}", reason)


@cache
def _bounded(descriptor: Descriptor) -> list[tuple[tuple[str, ...], int, str]]:
    """Returns path, bound and unit of each list and map with a bound that is reached through single messages."""
    bounded: list[tuple[tuple[str, ...], int, str]] = []
    for field in descriptor.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if is_map(field) and rules.map.max_pairs:
            bounded.append(((field.name,), rules.map.max_pairs, "pairs"))
        elif field.is_repeated and rules.repeated.max_items:
            bounded.append(((field.name,), rules.repeated.max_items, "items"))
        elif field.message_type is not None and not field.is_repeated and field.message_type is not descriptor:
            bounded += [((field.name, *path), most, unit) for path, most, unit in _bounded(field.message_type)]
    return bounded


def _nuls(message: Message) -> Iterator[str]:
    """Yields the path of each string with U+0000, which PostgreSQL cannot store. One rule here, not one a field.

    Nearly no request has a zero byte at all, and that is quickly seen.
    """
    if b"\x00" in message.SerializeToString():
        yield from _walk(message, "")


def _walk(message: Message, above: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = f"{above}.{field.name}" if above else field.name
        if is_map(field):
            key_field, value_field = entry_of(field)
            for key, element in value.items():
                here = f"{path}[{json.dumps(key)}]"
                yield from _inside(key, key_field, here)
                yield from _inside(element, value_field, here)
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield from _inside(element, field, f"{path}[{index}]")
        else:
            yield from _inside(value, field, path)


def _inside(value: Any, field: FieldDescriptor, path: str) -> Iterator[str]:  # noqa: ANN401 - any field's value
    if field.message_type is not None:
        yield from _walk(value, path)
    elif field.type == FieldDescriptor.TYPE_STRING and "\x00" in value:
        yield path

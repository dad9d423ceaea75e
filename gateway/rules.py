"""Judges a request by the rules that stand beside its fields in the protos: all of them at once.

Called by the interceptors for every request; knows no message by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping, Sequence
from functools import cache
from heapq import nsmallest
from typing import Any, TypeVar

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.http.profile import UNSPECIFIED, entry_of, enum_names, is_map
from gateway.status import Violation
from tunesmith.v1 import options_pb2

LEAST = 16  # elements of a list that are judged though it may have fewer: who takes the wrong one out knows of the rest
SHOWN = 60  # characters of a value that are repeated
COUNTED = ("repeated.min_items", "repeated.max_items", "map.min_pairs", "map.max_pairs")  # rules on how many there are

AnyMessage = TypeVar("AnyMessage", bound=Message)


def violations(message: Message) -> list[Violation]:
    """Returns every rule that the message breaks, each with what the value is where it can be shown."""
    within, broken = cut(message)
    too_long = {violation.field for violation in broken}
    try:
        found = protovalidate.collect_violations(within)
    except protovalidate.EvaluationError:  # it gives up on what takes too long
        return [*broken, Violation("", "is too large to be judged", "TOO_LARGE")]
    for violation in found:
        told = _told(violation, message.DESCRIPTOR)
        if not (told.field in too_long and told.reason in ("REPEATED_MAX_ITEMS", "MAP_MAX_PAIRS")):
            broken.append(told)
    return broken + [Violation(path, "must not contain U+0000", "CONTAINS_NUL") for path in _nuls(within)]


def cut(message: AnyMessage) -> tuple[AnyMessage, list[Violation]]:
    """Returns the message with its lists and maps hardly longer than they may be, and which of them were longer: so
    what it costs to judge the rest is bounded, for a rule over a whole list may cost the square of its length. Of a map
    the pairs with the least keys stay.
    """
    bounds = [(path, most, max(most, LEAST)) for path, most in _bounded(message.DESCRIPTOR)]
    exceeded = [bound for bound in bounds if len(_at(message, bound[0])) > bound[2]]
    if not exceeded:
        return message, []
    within = type(message)()
    within.CopyFrom(message)
    too_long = []
    for path, most, kept in exceeded:
        found, field = _at(within, path), ".".join(path)
        if isinstance(found, MutableMapping):
            sentence = f"map must be at most {most} entries; got {len(found)}"
            too_long.append(Violation(field, sentence, "MAP_MAX_PAIRS"))
            pairs = {key: found[key] for key in nsmallest(kept, found)}
            found.clear()
            found.update(pairs)
        else:
            sentence = f"must contain no more than {most} item(s); got {len(found)}"
            too_long.append(Violation(field, sentence, "REPEATED_MAX_ITEMS"))
            del found[kept:]
    return within, too_long


def _told(violation: protovalidate.Violation, descriptor: Any) -> Violation:  # noqa: ANN401 - a Descriptor of either kind
    rule, field = violation.proto, violation.proto.field
    wanted, shown = rule.message, ""
    leaf = _leaf(field, descriptor)
    if leaf is not None and leaf.enum_type is not None and rule.rule_id in ("enum.defined_only", "enum.not_in"):
        names = enum_names(leaf.enum_type)
        wanted = f"must be one of {', '.join(name for name in reversed(names.values()) if name != UNSPECIFIED)}"
        shown = names.get(violation.field_value, str(violation.field_value))
    elif leaf is not None and not rule.for_key:
        options = leaf.GetOptions()
        if rule.rule_id == "string.pattern" and options.HasExtension(options_pb2.pattern_words):
            wanted = options.Extensions[options_pb2.pattern_words]
        if not options.debug_redact:  # else a secret, also where it is mistyped
            shown = _shown(violation.field_value, rule.rule_id)
    return Violation(field_path(field), f"{wanted}; got {shown}" if shown else wanted, reason_of(rule.rule_id))


def _leaf(field: Any, descriptor: Any) -> FieldDescriptor | None:  # noqa: ANN401 - as in field_path()
    """Returns the field that a path ends with; None for a rule on the request as a whole, or on a oneof."""
    leaf, inside = None, descriptor
    for element in () if field is None else field.elements:
        leaf = None if inside is None else inside.fields_by_number.get(element.field_number)
        if leaf is None:
            return None
        inside = entry_of(leaf)[1].message_type if is_map(leaf) else leaf.message_type
    return leaf


def _shown(value: Any, rule_id: str) -> str:  # noqa: ANN401 - any field's
    """Returns a value for the sentence of the rule that it breaks; nothing where its parts say more than the whole."""
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}..., {len(value)} characters"
    if isinstance(value, (bool, int, float)):
        return str(value)
    return str(len(value)) if rule_id in COUNTED else ""


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


def _at(message: Any, path: Sequence[str]) -> Any:  # noqa: ANN401 - fields are got by name
    for name in path:
        message = getattr(message, name)
    return message


@cache
def _bounded(descriptor: Descriptor) -> list[tuple[tuple[str, ...], int]]:
    """Returns path and bound of each list and map with a bound that is reached through single messages."""
    bounded: list[tuple[tuple[str, ...], int]] = []
    for field in descriptor.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if is_map(field) and rules.map.max_pairs:
            bounded.append(((field.name,), rules.map.max_pairs))
        elif field.is_repeated and rules.repeated.max_items:
            bounded.append(((field.name,), rules.repeated.max_items))
        elif field.message_type is not None and not field.is_repeated and field.message_type is not descriptor:
            bounded += [((field.name, *path), most) for path, most in _bounded(field.message_type)]
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

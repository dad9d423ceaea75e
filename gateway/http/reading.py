"""Reads JSON values into messages in the JSON profile: one closure a type, made from its descriptor once.

Called by json (bodies) and transcoding (query, path and header text); knows no JSON text and no HTTP. It never stops at
a fault: every one is added to the caller's list, with its place, and what could be read is read. What could not be has
its place all the same, by an empty value or 0: such a message is judged by the rules, and never carried out.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.http import well_known
from gateway.http.fault import MOST_FAULTS, Fault, Loc, Reader, other_than, unfit
from gateway.http.profile import (
    Union,
    entry_of,
    is_map,
    is_strict,
    is_synthetic,
    message_of,
    union_of,
)
from gateway.http.scalars import Unreadable, converter, either, parser

# What stands for a value that could not be read; of numbers and enums 0.
_NOTHING: dict[int, Any] = {
    FieldDescriptor.TYPE_STRING: "",
    FieldDescriptor.TYPE_BYTES: b"",
    FieldDescriptor.TYPE_BOOL: False,
}


class Repeated(dict[str, Any]):
    """A JSON object in which a key stood more than once; `keys_repeated` says which."""

    keys_repeated: frozenset[str]


@cache
def reader(descriptor: Descriptor, leave_out: frozenset[str] = frozenset()) -> Reader:
    """Returns what reads a JSON object into a message of the type.

    Args:
        descriptor: The type.
        leave_out: Fields at the top level whose keys are unknown here: those that the path gives.
    """
    if descriptor.full_name in well_known.READERS:
        return well_known.READERS[descriptor.full_name]
    assert not descriptor.full_name.startswith("google.protobuf."), f"the JSON profile has no {descriptor.full_name}"
    union = union_of(descriptor)
    if union is not None:
        return _union_reader(descriptor, union)
    fields: dict[str, Reader] = {}
    strict = is_strict(descriptor)

    def read(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        if not fields:  # here and not before: a type may contain itself
            fields.update((f.name, field_reader(f)) for f in descriptor.fields if f.name not in leave_out)
        if not isinstance(value, dict):
            faults.append(other_than("an object", "dict_type", value, loc))
            return
        _read_keys(fields, strict, message, value, loc, faults)

    return read


def _read_keys(
    fields: dict[str, Reader],
    strict: bool,
    message: Message,
    value: dict[str, Any],
    loc: Loc,
    faults: list[Fault],
    known: Container[str] = (),
) -> None:
    for key, element in value.items():
        read = fields.get(key)
        if read is None:
            if strict and key not in known and len(faults) < MOST_FAULTS:
                faults.append(Fault((*loc, key), "Extra inputs are not permitted", "extra_forbidden"))
        elif element is not None:  # an explicit null is an unset field
            read(message, element, loc, faults)
    if type(value) is Repeated:
        for key in sorted(value.keys_repeated & fields.keys()):
            faults.append(Fault((*loc, key), "Key occurs more than once", "value_error", is_read=True))


def _union_reader(descriptor: Descriptor, union: Union) -> Reader:
    own = {f.name: field_reader(f) for f in descriptor.fields if f not in union.oneof.fields}
    arms: dict[str, tuple[str, dict[str, Reader], bool]] = {}
    for value, arm in union.arms.items():
        inside = message_of(arm)
        fields = {union.tag: _ignore, **{f.name: field_reader(f) for f in inside.fields}}
        arms[value] = (arm.name, fields, is_strict(descriptor) or is_strict(inside))
    expected = ", ".join(f"'{value}'" for value in arms)

    def pick(value: dict[str, Any], loc: Loc, faults: list[Fault]) -> str | None:
        """The tag's value, and of a union with one arm that one whatever the tag says."""
        tag = value.get(union.tag)
        only = next(iter(arms)) if len(arms) == 1 else None
        if isinstance(tag, str) and tag in arms:
            return tag
        if tag is None and only is None:
            faults.append(Fault((*loc, union.tag), f"Field required: one of {expected}", "missing"))
        elif tag is not None:
            fault = Unreadable(f"Input should be {either(expected)}", "union_tag_invalid")
            faults.append(unfit(fault, tag, (*loc, union.tag)))
        return only

    def read(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        if not isinstance(value, dict):
            faults.append(other_than("an object", "dict_type", value, loc))
            return
        tag = pick(value, loc, faults)
        # Keys of the union itself are read into it, those of the arm into the arm; both stand in one object.
        if tag is not None:
            name, fields, strict = arms[tag]
            arm = getattr(message, name)
            arm.SetInParent()
            _read_keys(fields, strict, arm, value, loc, faults, known=own)
        if own:
            _read_keys(own, False, message, value, loc, faults)

    return read


def _ignore(message: Message, value: object, loc: Loc, faults: list[Fault]) -> None:
    """Reads the tag's key, which has been read."""


def field_reader(field: FieldDescriptor) -> Reader:
    """Returns what reads the value of the field's key into a message; the value is not null."""
    if is_map(field):
        return _map_reader(field)
    if field.is_repeated:
        return _list_reader(field)
    read = _singular_reader(field)
    oneof = field.containing_oneof
    if oneof is None or is_synthetic(oneof):
        return read

    def read_arm(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        other = message.WhichOneof(oneof.name)
        if other is not None:
            faults.append(Fault((*loc, field.name), f"Not together with '{other}'", "value_error", is_read=True))
        read(message, value, loc, faults)

    return read_arm


def _singular_reader(field: FieldDescriptor) -> Reader:
    name = field.name
    if field.message_type is not None:
        descriptor = field.message_type

        def read_message(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
            inner = getattr(message, name)
            inner.SetInParent()
            reader(descriptor)(inner, value, (*loc, name), faults)

        return read_message
    convert = converter(field)
    is_secret = field.GetOptions().debug_redact
    nothing = _NOTHING.get(field.type, 0)

    def read_scalar(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        try:
            setattr(message, name, convert(value))
        except Unreadable as fault:
            faults.append(unfit(fault, value, (*loc, name), is_secret=is_secret))
            setattr(message, name, nothing)

    return read_scalar


def _list_reader(field: FieldDescriptor) -> Reader:
    name = field.name
    descriptor = field.message_type
    convert = None if descriptor is not None else converter(field)
    nothing = _NOTHING.get(field.type, 0)

    def read(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        here = (*loc, name)
        if not isinstance(value, list):
            faults.append(other_than("an array", "list_type", value, here))
            return
        elements = getattr(message, name)
        for index, element in enumerate(value):
            if len(faults) >= MOST_FAULTS:
                return
            if convert is None:
                reader(descriptor)(elements.add(), element, (*here, index), faults)
                continue
            try:
                elements.append(convert(element))
            except Unreadable as fault:
                faults.append(unfit(fault, element, (*here, index)))
                elements.append(nothing)  # so that rules tell those after it by their places

    return read


def _map_reader(field: FieldDescriptor) -> Reader:
    name = field.name
    key_field, value_field = entry_of(field)
    as_key = parser(key_field)
    descriptor = value_field.message_type
    convert = None if descriptor is not None else converter(value_field)
    nothing = _NOTHING.get(value_field.type, 0)

    def read(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        here = (*loc, name)
        if not isinstance(value, dict):
            faults.append(other_than("an object", "dict_type", value, here))
            return
        entries = getattr(message, name)
        for key, element in value.items():
            if len(faults) >= MOST_FAULTS:
                return
            try:
                name_of_pair = as_key(key)
            except Unreadable as fault:
                faults.append(unfit(fault, key, (*here, key)))
                continue
            try:
                if convert is None:
                    reader(descriptor)(entries[name_of_pair], element, (*here, key), faults)
                else:
                    entries[name_of_pair] = convert(element)
            except Unreadable as fault:
                # Read, for its key is: rules on keys are told besides. On values there is none that `nothing` breaks.
                faults.append(replace(unfit(fault, element, (*here, key)), is_read=True))
                entries[name_of_pair] = nothing
        if type(value) is Repeated:
            for key in sorted(value.keys_repeated):
                faults.append(Fault((*here, key), "Key occurs more than once", "value_error", is_read=True))

    return read


def text_reader(field: FieldDescriptor) -> Reader:
    """Returns what reads a parameter's texts into a message: a list of them where the field is repeated, else one.

    The field is textual; a timestamp is written in a parameter as it is in JSON.
    """
    if field.message_type is not None:
        return field_reader(field)
    parse, name, repeated = parser(field), field.name, field.is_repeated
    is_secret = field.GetOptions().debug_redact
    nothing = _NOTHING.get(field.type, 0)

    def read(message: Message, value: Any, loc: Loc, faults: list[Fault]) -> None:  # noqa: ANN401
        for index, text in enumerate(value if repeated else [value]):
            try:
                parsed = parse(text)
            except Unreadable as fault:
                faults.append(unfit(fault, text, (*loc, index) if repeated else loc, is_secret=is_secret))
                if not repeated:
                    continue
                parsed = nothing  # as in a list
            if repeated:
                getattr(message, name).append(parsed)
            else:
                setattr(message, name, parsed)

    return read


def is_textual(field: FieldDescriptor) -> bool:
    """Tells whether one text gives the field's value (or, where it is repeated, one element's)."""
    return not is_map(field) and (field.message_type is None or field.message_type.full_name in well_known.TEXTUAL)

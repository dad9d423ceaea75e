"""What the JSON profile calls things: keys, enum values, tags of unions. docs/api.md tells the profile itself.

Called by reading, writing and locations, once for each type; knows neither JSON text nor HTTP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor

from tunesmith.v1 import options_pb2

UNSPECIFIED = "unspecified"  # value 0 of an enum: stands for "unset", so it is written as null where there is one field


@dataclass(frozen=True)
class Union:
    """A message whose set arm is flattened into its own object, beside a tag that names the arm."""

    tag: str
    """The key that bears the arm's name."""
    oneof: OneofDescriptor
    arms: dict[str, FieldDescriptor]
    """Tag's value -> arm."""


@cache
def union_of(descriptor: Descriptor) -> Union | None:
    """Returns how the message is flattened, or None where it is not: option (tunesmith.v1.json).tag."""
    tag = descriptor.GetOptions().Extensions[options_pb2.json].tag
    if not tag:
        return None
    oneofs = [oneof for oneof in descriptor.oneofs if not is_synthetic(oneof)]
    assert len(oneofs) == 1, f"{descriptor.full_name} has a tag, so it wants exactly one oneof"
    arms = {}
    for arm in oneofs[0].fields:
        assert arm.message_type is not None, f"{arm.full_name} is an arm of a tagged union, so it must be a message"
        arms[arm.message_type.GetOptions().Extensions[options_pb2.json].tag_value or arm.name] = arm
        own = [field.name for field in descriptor.fields if field not in oneofs[0].fields]
        clash = {tag, *own} & {field.name for field in arm.message_type.fields}
        assert not clash, f"{arm.full_name} and its union both have {clash}"
    return Union(tag, oneofs[0], arms)


def is_synthetic(oneof: OneofDescriptor) -> bool:
    """Tells whether the oneof is only protoc's way of saying `optional`."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def is_strict(descriptor: Descriptor) -> bool:
    """Tells whether unknown keys are errors: option (tunesmith.v1.json).strict."""
    return bool(descriptor.GetOptions().Extensions[options_pb2.json].strict)


@cache
def enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """Returns number -> name: TUNE_STATUS_PENDING of TuneStatus is "pending"."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    return {value.number: value.name.removeprefix(prefix).lower() for value in reversed(enum.values)}


def message_of(field: FieldDescriptor) -> Descriptor:
    """Returns the type of a message field."""
    assert field.message_type is not None, f"{field.full_name} is no message"
    return field.message_type


def entry_of(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Returns a map's key and value."""
    entry = message_of(field)
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def is_map(field: FieldDescriptor) -> bool:
    """Tells whether the field is a map."""
    message = field.message_type
    return message is not None and bool(message.GetOptions().map_entry)

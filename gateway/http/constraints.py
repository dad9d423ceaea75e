"""The rules beside a proto field, as keywords of JSON Schema.

Called by schemas; knows no field by name. What JSON Schema has no word for stands under `x-rules`, so that no rule is
passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway import rules
from gateway.http.profile import UNSPECIFIED, enum_names

Schema = dict[str, Any]

_KEYWORDS: Final = {
    "const": "const",
    "in": "enum",
    "min_len": "minLength",
    "max_len": "maxLength",
    "pattern": "pattern",
    "gt": "exclusiveMinimum",
    "gte": "minimum",
    "lt": "exclusiveMaximum",
    "lte": "maximum",
    "min_items": "minItems",
    "max_items": "maxItems",
    "unique": "uniqueItems",
    "min_pairs": "minProperties",
    "max_pairs": "maxProperties",
    "example": "examples",
}
_FORMATS: Final = {
    "email": "email",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uri_ref": "uri-reference",
    "uuid": "uuid",
}
_SELF_EVIDENT: Final = frozenset(
    {"defined_only", "finite"}
)  # an enum lists its values, and JSON has finite numbers only
_INSIDE: Final = frozenset({"items", "keys", "values"})


def rules_of(field: FieldDescriptor) -> Any:  # noqa: ANN401 - protovalidate ships no types
    """Returns the field's FieldRules; empty where it has none."""
    return field.GetOptions().Extensions[validate_pb2.field]


def constrain(schema: Schema, field_rules: Any, enum: EnumDescriptor | None = None) -> Schema:  # noqa: ANN401
    """Returns the schema of one value (an element, of a list) held to its rules."""
    found: Schema = {}
    unsaid = [rule.message or rule.expression for rule in field_rules.cel] + list(field_rules.cel_expression)
    kind = field_rules.WhichOneof("type")
    for rule, value in [] if kind is None else getattr(field_rules, kind).ListFields():
        word = None if enum is not None and rule.name in ("in", "not_in", "const") else _KEYWORDS.get(rule.name)
        if rule.name in _SELF_EVIDENT or rule.name in _INSIDE:
            continue
        if word is not None:
            found[word] = list(value) if rule.is_repeated else value
        elif rule.name in _FORMATS:
            found["format"] = _FORMATS[rule.name]
        elif rule.name == "not_in" and enum is None:
            found["not"] = {"enum": list(value)}
        elif enum is not None:
            found["enum"] = _allowed(enum, rule.name, value)
        else:
            unsaid.append(f"{kind}.{rule.name}: {value}")
    if unsaid:
        found["x-rules"] = unsaid
    if field_rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE and found:
        return {"anyOf": [{"enum": [_zero(schema)]}, schema | found]}
    return schema | found


def _allowed(enum: EnumDescriptor, rule: str, value: Any) -> list[str]:  # noqa: ANN401 - a number or several
    numbers = {value} if rule == "const" else set(value)
    return [name for number, name in words(enum).items() if (number in numbers) != (rule == "not_in")]


def words(enum: EnumDescriptor) -> dict[int, str]:
    """Returns number -> name of what is sent and taken: UNSPECIFIED stands for "unset", which is null."""
    return {number: name for number, name in sorted(enum_names(enum).items()) if name != UNSPECIFIED}


def _zero(schema: Schema) -> Any:  # noqa: ANN401 - of the schema's own type
    zeros: dict[str, Callable[[], Any]] = {"string": str, "array": list, "object": dict, "boolean": bool}
    return zeros.get(schema.get("type", ""), int)()


@cache
def required_of(descriptor: Descriptor) -> frozenset[str]:
    """Returns the fields that a request must give: those whose absence breaks a rule, asked of the rules themselves."""
    empty = GetMessageClass(descriptor)()
    return frozenset(violation.field for violation in rules.violations(empty) if "." not in violation.field)

"""Messages as JSON Schema (Draft 2020-12): what the shim reads of a request, and what it writes in an answer.

Called by operations; follows reading and writing, by descriptors alone, and gathers one component a type and direction.

    written   every key is there; null only where the profile writes it: an unset field with presence, an unspecified
              enum, a number that JSON has not. A field whose rule says `required` is never null.
    read      only what a rule wants must be there; null is unset; unknown keys pass, unless the message is strict
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway.http.comments import comment
from gateway.http.constraints import Schema, constrain, required_of, rules_of, words
from gateway.http.profile import entry_of, is_map, is_strict, is_synthetic, message_of, union_of
from gateway.http.scalars import INTEGERS

# PostgreSQL cannot store it, so rules.py refuses it in every string.
NO_NUL: Final = r"^[^\u0000]*$"

# NaN and infinity are written as null.
_NOT_ALWAYS_JSON: Final = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)

_WELL_KNOWN: Final[dict[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Value": {},
    "google.protobuf.Empty": {"type": "object"},
}


class Schemas:
    """Gathers the schemas that a document refers to."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._names: dict[object, str] = {}

    def answer(self, descriptor: Descriptor) -> Schema:
        """Returns the schema of a message as it is written."""
        return _Direction(self, reading=False).message(descriptor)

    def answer_field(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of one field of an answer, as it is written."""
        return _Direction(self, reading=False).property(field, required=False)

    def body(self, descriptor: Descriptor, leave_out: frozenset[str]) -> Schema:
        """Returns the schema of a message as it is read; the path gives the fields that are left out."""
        direction = _Direction(self, reading=True)
        if all(field.name in leave_out for field in descriptor.fields):
            return {"type": "object"}
        return direction.message(descriptor, leave_out)

    def body_field(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of a field that is the whole body."""
        return _Direction(self, reading=True).property(field, required=False)

    def parameter(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of a path variable, query parameter or header."""
        return _Direction(self, reading=True).value(field)

    def component(self, key: object, wanted: str, make: Callable[[], Schema]) -> Schema:
        """Returns a reference to the component of that key; makes it the first time. A taken name gets a number."""
        if key not in self._names:
            name, number = wanted, 2
            while name in self.components:
                name, number = f"{wanted}{number}", number + 1
            self._names[key] = name
            self.components[name] = {}  # here already: a type may contain itself
            self.components[name].update(make())
        return {"$ref": f"#/components/schemas/{self._names[key]}"}


class _Direction:
    """The schemas of one direction."""

    def __init__(self, schemas: Schemas, *, reading: bool) -> None:
        self._schemas = schemas
        self._reading = reading

    def message(self, descriptor: Descriptor, leave_out: frozenset[str] = frozenset()) -> Schema:
        """Returns a reference to the message's component, or a well-known message's own schema."""
        if descriptor.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[descriptor.full_name])
        key = (descriptor.full_name, self._reading, leave_out)
        make = self._union if union_of(descriptor) is not None else self._object
        return self._schemas.component(key, self._name(descriptor), lambda: make(descriptor, leave_out))

    def _name(self, descriptor: Descriptor) -> str:
        own = not self._reading or descriptor.name.endswith("Request")
        return descriptor.name if own else f"{descriptor.name}Input"

    def _object(self, descriptor: Descriptor, leave_out: frozenset[str]) -> Schema:
        schema = self._fields(descriptor, [field for field in descriptor.fields if field.name not in leave_out])
        if self._reading and is_strict(descriptor):
            schema["additionalProperties"] = False
        return _described(schema, comment(descriptor.full_name))

    def _fields(self, descriptor: Descriptor, fields: list[FieldDescriptor]) -> Schema:
        required = required_of(descriptor) if self._reading else {field.name for field in fields}
        properties = {field.name: self.property(field, field.name in required) for field in fields}
        schema: Schema = {"type": "object", "properties": properties}
        if required & properties.keys():
            schema["required"] = [name for name in properties if name in required]
        return schema

    def _union(self, descriptor: Descriptor, leave_out: frozenset[str]) -> Schema:
        """An arm's fields and the union's own stand in one object, beside the tag."""
        union = union_of(descriptor)
        assert union is not None
        arms = {tag: self._arm(descriptor, tag, arm, leave_out) for tag, arm in union.arms.items()}
        if len(arms) == 1:
            return _described(next(iter(arms.values())), comment(descriptor.full_name))
        mapping = {tag: reference["$ref"] for tag, reference in arms.items()}
        schema = {
            "oneOf": list(arms.values()),
            "discriminator": {"propertyName": union.tag, "mapping": mapping},
        }
        return _described(schema, comment(descriptor.full_name))

    def _arm(self, descriptor: Descriptor, tag: str, arm: FieldDescriptor, leave_out: frozenset[str]) -> Schema:
        union, inside = union_of(descriptor), message_of(arm)
        assert union is not None

        def make() -> Schema:
            own = [f for f in descriptor.fields if f not in union.oneof.fields and f.name not in leave_out]
            mine, theirs = self._fields(descriptor, own), self._fields(inside, list(inside.fields))
            known: Schema = {"type": "string", "const": tag}
            if self._reading and len(union.arms) == 1:  # the one arm need not be named
                known = {"enum": [tag, None]}
            first = [] if None in known.get("enum", ()) else [union.tag]
            schema: Schema = {
                "type": "object",
                "properties": {union.tag: known, **mine["properties"], **theirs["properties"]},
                "required": [*first, *mine.get("required", ()), *theirs.get("required", ())],
            }
            if self._reading and (is_strict(descriptor) or is_strict(inside)):
                schema["additionalProperties"] = False
            return _described(schema, comment(inside.full_name))

        key = (descriptor.full_name, tag, self._reading, leave_out)
        return self._schemas.component(key, self._name(inside), make)

    def property(self, field: FieldDescriptor, required: bool) -> Schema:
        """Returns the schema of a field's key, with what its comment says."""
        schema = self.value(field)
        may_be_null = not required if self._reading else _written_null(field)
        if may_be_null:
            schema = nullable(schema)
        said = comment(field.full_name)
        oneof = field.containing_oneof
        if oneof is not None and not is_synthetic(oneof) and union_of(field.containing_type) is None:
            names = ", ".join(f"`{one.name}`" for one in oneof.fields)
            said = f"{said}\n\nAt most one of {names} is given.".strip()
        return _described(schema, said)

    def value(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of a field that is set."""
        rules = rules_of(field)
        if is_map(field):
            key, value = entry_of(field)
            schema: Schema = {"type": "object", "additionalProperties": self._element(value, rules.map.values)}
            if self._reading:
                schema["propertyNames"] = self._key(key, rules.map.keys)
            return constrain(schema, rules) if self._reading else schema
        if field.is_repeated:
            schema = {"type": "array", "items": self._element(field, rules.repeated.items)}
            return constrain(schema, rules) if self._reading else schema
        return self._element(field, rules)

    def _element(self, field: FieldDescriptor, rules: Any) -> Schema:  # noqa: ANN401
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is not None:
            enum = field.enum_type
            reference = self._schemas.component(enum.full_name, enum.name, lambda: _enum(enum))
            return constrain(reference, rules, enum) if self._reading else reference
        schema = _scalar(field)
        if not self._reading:
            return nullable(schema) if field.is_repeated and field.type in _NOT_ALWAYS_JSON else schema
        if field.type == FieldDescriptor.TYPE_STRING and not {"pattern", "in", "const"} & _told(rules):
            schema = {**schema, "pattern": NO_NUL}
        return constrain(_bounded(field, schema), rules)

    def _key(self, field: FieldDescriptor, rules: Any) -> Schema:  # noqa: ANN401
        """JSON's keys are strings, whatever the map's are."""
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._element(field, rules)
        pattern = "^(true|false|1|0)$" if field.type == FieldDescriptor.TYPE_BOOL else "^[+-]?[0-9]{1,20}$"
        return {"type": "string", "pattern": pattern}


def nullable(schema: Schema) -> Schema:
    """Returns the schema of the same value or null."""
    if not isinstance(schema.get("type"), str):
        return {"anyOf": [schema, {"type": "null"}]}
    null = {"type": [schema["type"], "null"]}
    if "enum" in schema:
        null["enum"] = [*schema["enum"], None]
    return {**schema, **null}


def _written_null(field: FieldDescriptor) -> bool:
    """Tells whether writing may put null under the field's key."""
    if field.is_repeated or rules_of(field).required:
        return False
    if field.enum_type is not None:
        return field.has_presence or 0 not in words(field.enum_type)
    return field.has_presence or field.type in _NOT_ALWAYS_JSON


def _told(rules: Any) -> set[str]:  # noqa: ANN401
    kind = rules.WhichOneof("type")
    return set() if kind is None else {rule.name for rule, _ in getattr(rules, kind).ListFields()}


def _enum(enum: EnumDescriptor) -> Schema:
    named = {value.number: comment(f"{enum.full_name}.{value.name}") for value in enum.values}
    lines = [f"- `{name}`: {named.get(number) or name}" for number, name in words(enum).items()]
    text = "\n".join([comment(enum.full_name), "", *lines]).strip()
    return _described({"type": "string", "enum": list(words(enum).values())}, text)


def _scalar(field: FieldDescriptor) -> Schema:
    if field.type in INTEGERS:
        least, most = INTEGERS[field.type]
        return {"type": "integer", "format": f"{'u' if least == 0 else ''}int{32 if most < 2**32 else 64}"}
    return dict(_SCALARS[field.type])


def _bounded(field: FieldDescriptor, schema: Schema) -> Schema:
    """A request's integer has the bounds of its type, though `format` says them to those who know."""
    if field.type not in INTEGERS:
        return schema
    least, most = INTEGERS[field.type]
    rules = _told(rules_of(field).repeated.items if field.is_repeated else rules_of(field))
    lower = {} if {"gt", "gte"} & rules else {"minimum": least}
    return {**schema, **lower, **({} if {"lt", "lte"} & rules else {"maximum": most})}


def _described(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text} if text else schema


_SCALARS: Final[dict[int, Schema]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
}

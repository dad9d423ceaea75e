"""A message with every kind of field, and a service with every kind of HTTP rule, which our own protos do not have.

Used by the tests of gateway/http; made at run time, so that no test proto is compiled or shipped.
"""

from __future__ import annotations

from typing import Any

from google.api import annotations_pb2
from google.api.http_pb2 import CustomHttpPattern, HttpRule
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

Field = FieldDescriptorProto
_SCALARS = """
    double float int64 uint64 int32 fixed64 fixed32 bool string bytes uint32 sfixed32 sfixed64 sint32 sint64
"""
RULES = {
    "Named": HttpRule(get="/v1/{name=shelves/*/books/*}"),
    "Any": HttpRule(get="/v1/files/{name=**}"),
    "Read": HttpRule(
        get="/v1/kinds/{inner.string_value}",
        additional_bindings=[HttpRule(get="/v2/kinds/{inner.string_value}"), HttpRule(post="/v2/kinds", body="*")],
    ),
    "Special": HttpRule(get="/v1/kinds/special"),
    "Query": HttpRule(get="/v1/query"),
    "Inner": HttpRule(post="/v1/kinds/{name}/inner", body="inner", response_body="inner"),
    "Strings": HttpRule(put="/v1/kinds/{name}/strings", body="many_string", response_body="many_string"),
    "Archive": HttpRule(post="/v1/kinds/{name}:archive"),
    "Purge": HttpRule(custom=CustomHttpPattern(kind="PURGE", path="/v1/kinds/{name}")),
}


def _file() -> FileDescriptorProto:
    imports = ["google/protobuf/timestamp.proto", "google/protobuf/duration.proto", "google/api/annotations.proto"]
    file = FileDescriptorProto(name="tests/kinds.proto", package="tests", syntax="proto3", dependency=imports)
    color = file.enum_type.add(name="Color")
    for number, name in enumerate(("COLOR_UNSPECIFIED", "COLOR_RED", "COLOR_DARK_BLUE")):
        color.value.add(name=name, number=number)
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="string_value", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    inner.field.add(name="deeper", number=2, type=Field.TYPE_MESSAGE, type_name=".tests.Inner", label=1)
    inner.field.add(name="int_value", number=3, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL)
    kinds = file.message_type.add(name="Kinds")
    _add(kinds, "name", Field.TYPE_STRING)
    for kind in _SCALARS.split():
        type_: Any = Field.Type.Value(f"TYPE_{kind.upper()}")
        _add(kinds, f"one_{kind}", type_)
        _add(kinds, f"many_{kind}", type_, label=Field.LABEL_REPEATED)
        kinds.oneof_decl.add(name=f"_maybe_{kind}")
        _add(kinds, f"maybe_{kind}", type_, proto3_optional=True, oneof_index=len(kinds.oneof_decl) - 1)
        if kind not in ("double", "float", "bytes"):
            _add_map(kinds, f"by_{kind}", type_)
    for name, type_name in (
        ("inner", ".tests.Inner"),
        ("at", ".google.protobuf.Timestamp"),
        ("during", ".google.protobuf.Duration"),
    ):
        _add(kinds, name, Field.TYPE_MESSAGE, type_name=type_name)
        _add(kinds, f"many_{name}", Field.TYPE_MESSAGE, type_name=type_name, label=Field.LABEL_REPEATED)
    _add(kinds, "color", Field.TYPE_ENUM, type_name=".tests.Color")
    _add(kinds, "many_color", Field.TYPE_ENUM, type_name=".tests.Color", label=Field.LABEL_REPEATED)
    service = file.service.add(name="KindService")
    for name, rule in RULES.items():
        method = service.method.add(name=name, input_type=".tests.Kinds", output_type=".tests.Kinds")
        method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    return file


def _add(message: Any, name: str, kind: Any, label: Any = Field.LABEL_OPTIONAL, **more: Any) -> None:
    message.field.add(name=name, number=len(message.field) + 1, type=kind, label=label, **more)


def _add_map(message: Any, name: str, key: Any) -> None:
    entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=key, label=Field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=Field.TYPE_MESSAGE, type_name=".tests.Inner", label=1)
    _add(message, name, Field.TYPE_MESSAGE, Field.LABEL_REPEATED, type_name=f".tests.Kinds.{entry.name}")


def _made() -> tuple[Descriptor, ServiceDescriptor]:
    pool = descriptor_pool.Default()
    try:
        file = pool.FindFileByName("tests/kinds.proto")
    except KeyError:
        file = pool.AddSerializedFile(_file().SerializeToString())
    return file.message_types_by_name["Kinds"], file.services_by_name["KindService"]


KINDS, KIND_SERVICE = _made()

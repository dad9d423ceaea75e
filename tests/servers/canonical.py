"""What another transcoder answers, told as the gateway's shim tells it: one step for each difference that the contract
forces. docs/api.md lists them, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway.http.profile import entry_of, enum_names, is_map, union_of

DIFFERENCES = (
    "status of a create",
    "enum values",
    "64-bit integers",
    "times",
    "unset fields",
    "tagged unions",
    "streams",
    "errors",
    "broken rules",
)

_INT64 = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT64)
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Reading:
    """Reads answers of another transcoder.

    Args:
        without: Differences that are left as they are.
    """

    def __init__(self, without: Container[str] = ()) -> None:
        self._without = without

    def answer(self, output: Descriptor, success: int, status: int, value: Any) -> tuple[int, Any]:
        """An answer's status and JSON.

        Args:
            output: The rpc's response.
            success: The status of the shim where the rpc succeeds.
            status: The other's.
            value: The other's JSON.
        """
        if status >= 400:
            return self.refusal(status, value)
        if self._on("status of a create"):
            status = success
        if isinstance(value, list) and not self._on("streams"):
            return status, value
        messages = value if isinstance(value, list) else [value]
        told = [self.message(output, one) for one in messages]
        return status, told if isinstance(value, list) else told[0]

    def message(self, descriptor: Descriptor, value: Any) -> Any:
        """A message in protobuf's own JSON."""
        if descriptor.full_name == "google.protobuf.Timestamp":
            return self._time(value)
        if descriptor.full_name.startswith("google.protobuf."):
            return value
        union = union_of(descriptor)
        arms = [] if union is None else union.oneof.fields
        told = {key: found for key, found in value.items() if key not in descriptor.fields_by_name}
        for field in descriptor.fields:
            if field.name in value:
                told[field.name] = self._field(field, value[field.name])
            elif field not in arms and self._on("unset fields"):
                told[field.name] = None
        if union is None or not self._on("tagged unions"):
            return told
        tag = next((tag for tag, arm in union.arms.items() if arm.name in told), None)
        inside = told.pop(union.arms[tag].name) if tag is not None else {}
        return {union.tag: tag, **told, **inside}

    def _field(self, field: FieldDescriptor, value: Any) -> Any:
        if is_map(field):
            return {key: self._element(entry_of(field)[1], one) for key, one in value.items()}
        if field.is_repeated:
            return [self._element(field, one) for one in value]
        told = self._element(field, value)
        return None if told == "unspecified" and self._on("unset fields") else told

    def _element(self, field: FieldDescriptor, value: Any) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type, value)
        if field.enum_type is not None:
            return self._enum(field.enum_type, value)
        return int(value) if field.type in _INT64 and self._on("64-bit integers") else value

    def _enum(self, enum: EnumDescriptor, value: str) -> str:
        return enum_names(enum)[enum.values_by_name[value].number] if self._on("enum values") else value

    def _time(self, text: str) -> str:
        """Three digits of a fraction become six."""
        return re.sub(r"\.([0-9]{3})Z$", r".\g<1>000Z", text) if self._on("times") else text

    def refusal(self, status: int, value: Any) -> tuple[int, Any]:
        """A refusal's status and JSON."""
        if value is None or not self._on("errors"):  # without a body it is its own router's: no rpc was asked
            return status, value
        details = {one["@type"].rpartition(".")[2]: one for one in value.get("details", [])}
        broken = [one["description"] for one in details.get("BadRequest", {}).get("field_violations", [])]
        if broken and self._on("broken rules"):
            return 422, sorted(broken)
        reason = details.get("ErrorInfo", {}).get("reason")
        return status, {"detail": value["message"], "code": _CODES[value["code"]], "reason": reason}

    def _on(self, difference: str) -> bool:
        assert difference in DIFFERENCES
        return difference not in self._without


def refusal(status: int, value: Any) -> tuple[int, Any]:
    """A refusal of the shim, as far as another transcoder can tell it: where a 422 stands only HTTP knows."""
    if status == 422:
        return status, sorted(fault["msg"] for fault in value["detail"])
    if value["reason"] == "NO_ROUTE":
        return status, None
    return status, {key: value[key] for key in ("detail", "code", "reason")}

"""Holds HTTP answers against an OpenAPI document, more strictly than it asks. Used by the tests of the contract.

In an answer also no key may stand that the document does not name: what is added must be written down.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker

Document = dict[str, Any]


@dataclass(frozen=True)
class Contract:
    """A document, and what has been seen of it."""

    document: Document
    seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Operation -> the statuses with which it was answered."""

    def operations(self) -> dict[str, Document]:
        """operationId -> operation."""
        return {
            operation["operationId"]: operation
            for item in self.document["paths"].values()
            for operation in item.values()
        }

    def hold(self, response: httpx.Response) -> None:
        """Fails where the answer is none that the document has. An httpx event hook; reads the body."""
        path, verb = response.request.url.raw_path.decode().partition("?")[0], response.request.method
        if "event-stream" not in response.headers.get("content-type", ""):
            response.read()
        found = self.operation(path, verb)
        if found is None:
            assert response.status_code in (404, 405), f"{verb} {path}: {response.status_code} of no operation"
            self.hold_value({"$ref": "#/components/schemas/Refusal"}, response.json())
            return
        self.seen[found["operationId"]].add(response.status_code)
        where = f"{found['operationId']}: {response.status_code} {response.text[:300] if response.is_closed else ''}"
        described = found["responses"].get(str(response.status_code))
        assert described is not None, f"{where}: the status is not documented"
        for name, header in described["headers"].items():
            if self._resolved(header).get("required"):
                assert name in response.headers, f"{where}: no {name}"
        content = described.get("content", {})
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if content:
            assert media_type in content or "application/octet-stream" in content, (
                f"{where}: {media_type} is not documented"
            )
        if media_type == "application/json" and verb != "HEAD":
            self.hold_value(content[media_type]["schema"], response.json(), where)

    def hold_message(self, operation_id: str, value: Any) -> None:
        """Fails where the value, one message of a stream, is not as documented."""
        content = self.operations()[operation_id]["responses"]["200"]["content"]["application/x-ndjson"]
        self.hold_value(content["x-line-schema"], value, operation_id)

    def hold_value(self, schema: Document, value: Any, where: str = "") -> None:
        """Fails where the value is not of the schema, every violation at once."""
        root = {"components": {"schemas": closed(self.document["components"]["schemas"])}, **closed(schema)}
        validator = Draft202012Validator(root, format_checker=FormatChecker())
        broken = [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(value)]
        assert broken == [], where

    def operation(self, path: str, verb: str) -> Document | None:
        """The operation that a request is, or None."""
        verb = "get" if verb == "HEAD" else verb.lower()
        templates = sorted(self.document["paths"], key=lambda template: template.count("{"))
        for template in templates:
            segment = ".+" if template.startswith("/v1/objects/") else "[^/]+"
            pattern = re.sub(r"\\\{\w+\\\}", segment, re.escape(template))
            if re.fullmatch(pattern, path) and verb in self.document["paths"][template]:
                found: Document = self.document["paths"][template][verb]
                return found
        return None

    def _resolved(self, value: Document) -> Document:
        if "$ref" not in value:
            return value
        found: Any = self.document
        for key in value["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        resolved: Document = found
        return resolved


def closed(schema: Any) -> Any:
    """The schema, with no key allowed that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value if key in ("const", "enum") else closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made

"""Each binding as an OpenAPI operation: parameters, body, answers, and every status that it may end with.

Called by openapi; knows no rpc by name. Which statuses an rpc has of its own is read from its comment, where each
stands on a line: `NOT_FOUND: no such tune`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import grpc

from gateway.http import comments
from gateway.http.bindings import Binding, Parameter
from gateway.http.constraints import Schema, required_of
from gateway.http.schemas import Schemas
from gateway.interceptors import scope_of
from gateway.status import HTTP

Operation = dict[str, Any]

VERBS: Final = ("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH")  # OpenAPI 3.1 has no others

_CODE = re.compile(r"([A-Z_]+): (.+)")
_VARIABLE = re.compile(r"\{([^}=]+)(?:=([^}]*))?\}")

# RESOURCE_EXHAUSTED has two statuses: 429 for what becomes less by waiting, and this for what is too large for ever.
_TOO_LARGE: Final = re.compile(r"\blarger?\b")

_ALWAYS: Final = {
    401: "No API key, or not a valid one.",
    422: "The request breaks a rule or has a wrong type: every fault at once, each with its place.",
    429: "Too many requests, or a queue is full: wait for as long as `Retry-After` says.",
    431: "Path and headers are too large.",
    500: "A fault of the server's.",
    503: "Not available at the moment, such as while the database is away: try again after `Retry-After`.",
    504: "The answer took too long.",
}
_WITH_BODY: Final = {
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8.",
}


def path_of(binding: Binding) -> str:
    """Returns the binding's path as OpenAPI writes it."""
    return _VARIABLE.sub(r"{\1}", binding.template.text)


def operation(binding: Binding, schemas: Schemas) -> Operation:
    """Returns one binding's operation."""
    method = binding.method
    said = method_comment(method.full_name)
    scope = scope_of(binding.rpc)
    described: Operation = {
        "operationId": method.name,
        "summary": re.split(r"(?<=\.)\s", said.text, maxsplit=1)[0],
        "description": f"{said.text}\n\nNeeds the scope `{scope}`.",
        "tags": [method.containing_service.name.removesuffix("Service")],
        "parameters": list(_parameters(binding, schemas)),
        "security": [{"bearer": []}],
        "x-grpc-method": binding.rpc.removeprefix("/"),
    }
    if binding.body:
        described["requestBody"] = _body(binding, schemas)
    described["responses"] = _responses(binding, schemas, said.codes, scope)
    return described


class Said:
    """A comment above an rpc, taken apart."""

    def __init__(self, text: str, codes: dict[grpc.StatusCode, str]) -> None:
        self.text = text
        self.codes = codes


def method_comment(full_name: str) -> Said:
    """Returns what an rpc's comment says, and apart from it what each status code means there.

    A line that begins with a code, and those that follow until its sentence ends, are that code's.
    """
    kept: list[str] = []
    codes: dict[grpc.StatusCode, str] = {}
    open_code: grpc.StatusCode | None = None
    for line in comments.raw(full_name).splitlines():
        match = _CODE.match(line)
        if match is not None and match[1] in grpc.StatusCode.__members__:
            open_code = grpc.StatusCode[match[1]]
            codes[open_code] = match[2]
        elif open_code is not None and line:
            codes[open_code] += f" {line}"
        else:
            kept.append(line)
        if open_code is not None and (not line or codes[open_code].endswith(".")):
            open_code = None
    paragraphs = [comments.unwrapped(paragraph) for paragraph in "\n".join(kept).split("\n\n")]
    return Said("\n\n".join(filter(None, paragraphs)), codes)


def _parameters(binding: Binding, schemas: Schemas) -> Iterator[Operation]:
    patterns = {name: inside for name, inside in _VARIABLE.findall(binding.template.text) if inside}
    for variable in binding.variables:
        schema = schemas.parameter(variable.field)
        if variable.name in patterns:
            schema = schema | {"pattern": _pattern(patterns[variable.name])}
        yield _parameter(variable, "path", {"minLength": 1} | schema if schema.get("type") == "string" else schema)
    for query in binding.query:
        yield _parameter(query, "query", schemas.parameter(query.field))
    for header in binding.headers:
        schema = schemas.parameter(header.field)
        schema.pop("minLength", None)  # an empty header is none
        yield _parameter(header, "header", schema)
    yield {"$ref": "#/components/parameters/RequestId"}


def _parameter(parameter: Parameter, place: str, schema: Schema) -> Operation:
    field = parameter.field
    described: Operation = {"name": parameter.name, "in": place, "schema": schema}
    text = comments.comment(field.full_name)
    if text:
        described["description"] = text
    required = len(parameter.path) == 1 and field.name in required_of(field.containing_type)
    if place == "path" or (place == "query" and required):
        described["required"] = True
    if field.is_repeated:
        described["explode"] = True
    return described


def _pattern(template: str) -> str:
    """Returns what a variable of several segments matches."""
    parts = [{"*": "[^/]+", "**": ".*"}.get(part, re.escape(part)) for part in template.split("/")]
    return f"^{'/'.join(parts)}$"


def _body(binding: Binding, schemas: Schemas) -> Operation:
    request = binding.method.input_type
    if binding.body == "*":
        leave_out = frozenset(variable.dotted for variable in binding.variables)
        schema = schemas.body(request, leave_out)
        required = bool(required_of(request) - leave_out)
    else:
        schema = schemas.body_field(request.fields_by_name[binding.body])
        required = binding.body in required_of(request)
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _responses(
    binding: Binding, schemas: Schemas, codes: dict[grpc.StatusCode, str], scope: str
) -> dict[str, Operation]:
    own: dict[int, str] = {}
    for code, meaning in codes.items():
        large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(meaning)
        status = 413 if large else HTTP[code]
        own[status] = f"{own[status]} {_sentence(meaning)}" if status in own else _sentence(meaning)
    general = {403: f"The API key lacks the scope `{scope}`.", **_ALWAYS, **(_WITH_BODY if binding.body else {})}
    found = {str(binding.success_status): _success(binding, schemas)}
    if binding.method.server_streaming and binding.headers:
        found["204"] = {"description": "Resumed where nothing is left to tell: ask no more.", "headers": NAMED}
    for status, meaning in sorted((general | own).items()):
        found[str(status)] = refusal(status, meaning)
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _success(binding: Binding, schemas: Schemas) -> Operation:
    output = binding.method.output_type
    if binding.method.server_streaming:
        message = schemas.answer(output)
        content = {
            "text/event-stream": {"schema": _event(message), "x-event-schema": message},
            "application/x-ndjson": {"schema": {"type": "string"}, "x-line-schema": message},
        }
        text = "The messages as they come: server-sent events, or one JSON object a line where `Accept` asks for it."
        return {"description": text, "headers": NAMED, "content": content}
    if binding.response_body:
        schema = schemas.answer_field(output.fields_by_name[binding.response_body])
    else:
        schema = schemas.answer(output)
    headers = dict(NAMED)
    if "request_id" in binding.method.input_type.fields_by_name:
        headers["Idempotent-Replay"] = {"$ref": "#/components/headers/IdempotentReplay"}
    return {
        "description": comments.comment(output.full_name).partition("\n")[0] or "The answer.",
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


def _event(message: Schema) -> Schema:
    """Of each server-sent event: OpenAPI 3.1 has no word for the items of a stream, and tools take `schema` for one."""
    data = [message, {"$ref": "#/components/schemas/Refusal"}, {"type": "object", "maxProperties": 0}]  # error, end
    parts: dict[str, Schema] = {
        "id": {"type": "string", "description": "The message's `id`, for `Last-Event-ID`."},
        "event": {"type": "string", "description": "What the message tells of; `end` and `error` end a stream."},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": data}},
    }
    return {"type": "object", "properties": parts}


#: Headers of every answer.
NAMED: Final[dict[str, Any]] = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}


def refusal(status: int, meaning: str) -> Operation:
    """Returns the answer to a request that is refused with the status."""
    headers = dict(NAMED)
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WwwAuthenticate"}
    if status in (429, 503):
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    schema = {"$ref": f"#/components/schemas/{'InvalidRequest' if status == 422 else 'Refusal'}"}
    return {"description": meaning, "headers": headers, "content": {"application/json": {"schema": schema}}}


REFUSALS: Final[dict[str, Schema]] = {
    "Refusal": {
        "type": "object",
        "description": "Why a request was refused; of 422 see InvalidRequest.",
        "properties": {
            "detail": {"type": "string", "description": "A sentence for people."},
            "code": {"enum": [code.name for code in grpc.StatusCode], "description": "gRPC's name of the status."},
            "reason": {"type": "string", "description": "A stable word for programs, such as `NAME_TAKEN`."},
            "request_id": {"type": "string", "description": "Names the request in the server's log."},
        },
        "required": ["detail", "code", "reason", "request_id"],
    },
    "InvalidRequest": {
        "type": "object",
        "description": "Every fault of a request.",
        "properties": {"detail": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Fault"}}},
        "required": ["detail"],
    },
    "Fault": {
        "type": "object",
        "description": "One thing wrong with a request.",
        "properties": {
            "loc": {
                "type": "array",
                "items": {"type": ["string", "integer"]},
                "description": 'Where: `["body", "details", "files", 1, "file_id"]`.',
            },
            "msg": {"type": "string", "description": "What is wrong, for people."},
            "type": {"type": "string", "description": "The same for programs, such as `missing` or `int_type`."},
        },
        "required": ["loc", "msg", "type"],
    },
}

PARAMETERS: Final[dict[str, Operation]] = {
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Names the request in the answer, in errors and in the log. One that is longer than 128 "
        "characters, or has others than letters, digits and `._:-`, is replaced.",
        "schema": {"type": "string"},
    }
}

HEADERS: Final[dict[str, Operation]] = {
    "RequestId": {"description": "The request's own, or made.", "schema": {"type": "string"}, "required": True},
    "IdempotentReplay": {
        "description": "`true`: this is the answer to an earlier request that was the same.",
        "schema": {"const": "true"},
    },
    "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "WwwAuthenticate": {"description": "Which kind of key is wanted.", "schema": {"const": "Bearer"}},
}

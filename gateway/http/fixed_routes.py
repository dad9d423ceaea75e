"""The operations that are no rpc, as OpenAPI describes them: health, the document itself, signed URLs of objects.

Called by openapi. What serves them is in app, openapi and objects.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.http.operations import NAMED, Operation, refusal

TAG: Final = {"name": "Server", "description": "What the server says of itself, and the bytes of objects."}

_BYTES: Final[Operation] = {"application/octet-stream": {}}


def paths(*, serves_objects: bool) -> dict[str, dict[str, Operation]]:
    """Returns path -> verb -> operation."""
    found = {"get": _get_object()} if serves_objects else {}
    return {
        "/health": {"get": _health()},
        "/openapi.json": {"get": _openapi()},
        "/v1/objects/{key}": {**found, "put": _put_object()},
    }


def _operation(name: str, summary: str, responses: dict[str, Operation], **more: Any) -> Operation:  # noqa: ANN401
    """One that wants no key."""
    described = {"operationId": name, "summary": summary, "tags": [TAG["name"]], "security": []}
    parameters = [*more.pop("parameters", ()), {"$ref": "#/components/parameters/RequestId"}]
    large = {"431": refusal(431, "Path and headers are too large.")}
    return {**described, "parameters": parameters, **more, "responses": responses | large}


def _health() -> Operation:
    said = {
        "status": "`ok` where requests may be sent here.",
        "version": "The server's.",
        "gateway_id": "Which of several gateways it is.",
    }
    properties = {name: {"type": "string", "description": text} for name, text in said.items()}
    schema = {"type": "object", "properties": properties, "required": list(said)}
    content = {"application/json": {"schema": schema}}
    well = {"description": "It takes requests.", "headers": NAMED, "content": content}
    return _operation(
        "Health",
        "Tells a load balancer whether to send requests here.",
        {"200": well, "503": {"description": "It ends: send no more requests.", "headers": NAMED, "content": content}},
    )


def _openapi() -> Operation:
    content = {"application/json": {"schema": {"type": "object"}}}
    etag: Operation = {**NAMED, "ETag": {"schema": {"type": "string"}}}
    found = {"description": "This document.", "headers": etag, "content": content}
    same = {"description": "It is the one that `If-None-Match` names.", "headers": etag}
    return _operation("OpenApi", "Returns this document.", {"200": found, "304": same})


def _object(
    name: str,
    summary: str,
    terms: tuple[str, ...],
    responses: dict[str, Operation],
    **more: Any,  # noqa: ANN401
) -> Operation:
    key = {"name": "key", "in": "path", "description": "The object's key, slashes and all."}
    signed = [{"name": one, "in": "query"} for one in (*terms, "signature")]
    text = "The whole URL comes with an answer and is used as it is: verb, path and query are signed."
    parameters = [{**one, "required": True, "schema": {"type": "string"}} for one in (key, *signed)]
    always = {
        "403": refusal(403, "The URL was not signed by us, or has expired: ask for a new one."),
        "500": refusal(500, "A fault of the server's."),
        "503": refusal(503, "Objects are not available at the moment: try again after `Retry-After`."),
    }
    return _operation(name, summary, {**responses, **always}, description=text, parameters=parameters, **more)


def _get_object() -> Operation:
    span: Operation = {"Content-Range": {"schema": {"type": "string"}}}
    responses = {
        "200": {"description": "The bytes.", "headers": NAMED, "content": _BYTES},
        "206": {"description": "The bytes that `Range` names.", "headers": {**NAMED, **span}, "content": _BYTES},
        "404": refusal(404, "Nothing was uploaded here."),
        "416": refusal(416, "The object is shorter than that."),
    }
    return _object("GetObject", "Downloads an object by its signed URL.", ("expires",), responses)


def _put_object() -> Operation:
    content = {"application/json": {"schema": {"type": "object"}}}
    responses = {
        "200": {"description": "The bytes are there.", "headers": NAMED, "content": content},
        "400": refusal(400, "The body is not all of the object, or the asset does not wait for it any more."),
        "408": refusal(408, "The upload came too slowly."),
        "413": refusal(413, "The upload is too large."),
    }
    body = {"required": True, "content": _BYTES}
    return _object(
        "PutObject", "Uploads an object by its signed URL.", ("expires", "most", "owner"), responses, requestBody=body
    )

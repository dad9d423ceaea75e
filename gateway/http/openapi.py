"""The OpenAPI 3.1 document of the HTTP side, made from descriptors, rules and comments: no line knows tunes.

Called by the server, which mounts the routes. The document and the page that shows it are open to all.

    bindings --operations--> paths -----+
    messages --schemas-----> components +--> /openapi.json <-- /docs, a page of ours that loads nothing from elsewhere
    rules ---constraints---> keywords --+
    comments ---------------> prose ----+
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http import comments, fixed_routes, json
from gateway.http.bindings import bindings
from gateway.http.exchange import Answer
from gateway.http.operations import HEADERS, PARAMETERS, REFUSALS, VERBS, operation, path_of
from gateway.http.schemas import Schemas

Document = dict[str, Any]

_ABOUT: Final = """Tunes LoRAs of image-diffusion models, and stores what goes in and comes out.

Every operation that wants a key wants `Authorization: Bearer <key>`. A GET that answers JSON may be asked as HEAD.
A verb that a path has not is answered 405, a path that is not there 404.

Unknown keys of a body are ignored, unless its schema has `additionalProperties: false`; an explicit `null` means unset.
In an answer every key is always there. No text may hold U+0000.
"""


def document(services: Sequence[ServiceDescriptor], version: str, *, serves_objects: bool) -> Document:
    """Returns the document.

    Args:
        services: Whose rpcs with an HTTP rule are served.
        version: The server's own.
        serves_objects: Whether objects are downloaded from the server itself; else their store serves them.
    """
    schemas = Schemas()
    paths: dict[str, Document] = {}
    for binding in bindings(services):
        if binding.verb in VERBS:
            described = operation(binding, schemas)
            paths.setdefault(path_of(binding), {}).setdefault(binding.verb.lower(), described)
    taken: set[str] = set()
    for item in paths.values():
        for described in item.values():  # an rpc with several rules is several operations
            while described["operationId"] in taken:
                described["operationId"] += "_"
            taken.add(described["operationId"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tunesmith", "version": version, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
        "tags": [
            *({"name": _tag(service), "description": comments.comment(service.full_name)} for service in services),
            fixed_routes.TAG,
        ],
        "paths": dict(sorted(paths.items())) | fixed_routes.paths(serves_objects=serves_objects),
        "components": {
            "schemas": dict(sorted({**schemas.components, **REFUSALS}.items())),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _tag(service: ServiceDescriptor) -> str:
    return service.name.removesuffix("Service")


def route(described: Document) -> BaseRoute:
    """Returns the route that serves the document."""
    return Route("/openapi.json", Kept(json.dumps(described), "application/json"), methods=["GET", "HEAD"])


class Kept:
    """Serves one body that lasts as long as the process, to whoever asks, and says when a cache has it already."""

    def __init__(self, body: bytes, media_type: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._tag = tag.encode()
        # Asked again each time, and answered 304: a new version of the server is seen at once.
        self._headers = (("etag", tag), ("cache-control", "no-cache"), ("x-content-type-options", "nosniff"), *headers)
        self._answer = Answer(200, body, self._headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 304 where the asker has it, else 200."""
        known = dict(scope["headers"]).get(b"if-none-match", b"")
        if known.strip() == b"*" or self._tag in [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]:
            await Answer(304, b"", self._headers).send(scope, send)
            return
        await self._answer.send(scope, send)

"""The HTTP side of the gateway as one ASGI app. Called by server; wires the parts of this package and knows no message.

Edge (request id, tidy path, log, metric, 500)
 +- /health
 +- /v1/objects/{key}     signed URLs that lead here
 +- extra routes          dashboard, openapi
 +- transcoded routes     the services' google.api.http rules
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http import json, transcoding
from gateway.http.edge import Edge, Recorder, answer_http_exception, answer_refusal
from gateway.http.exchange import Answer
from gateway.http.objects import CheckPut, any_key
from gateway.http.objects import route as objects_route
from gateway.http.requests import Limits
from gateway.http.room import Room
from gateway.http.transcoding import Channel
from gateway.status import Refusal
from store.objects import Objects
from store.objects.signing import Signer

__all__ = ["CHANNEL_OPTIONS", "Limits", "build"]

# For a private channel between shim and server, where that is no Loopback. A refusal may hold a violation for each of a
# thousand files, and a list of tunes may be larger than what one message usually may.
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 8 * 1024 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024 * 1024),
)

Health = Callable[[], Awaitable[Mapping[str, Any]]]


async def _well() -> Mapping[str, Any]:
    return {"status": "ok"}


def build(
    channel: Channel,
    services: Sequence[ServiceDescriptor],
    *,
    objects: tuple[Objects, Signer] | None = None,
    room: Room | None = None,
    check_put: CheckPut = any_key,
    extra_routes: Sequence[BaseRoute] = (),
    health: Health = _well,
    record: Recorder = lambda route, verb, status, seconds: None,
    limits: Limits | None = None,
) -> Starlette:
    """Returns the app.

    Args:
        channel: To what serves `services`: a Loopback, or a channel made with CHANNEL_OPTIONS.
        services: Whose rpcs with an HTTP rule are served.
        objects: The object store, and who has signed the URLs of its objects that lead here. None: none does.
        room: Memory for uploads that come here. None: as much as they like.
        check_put: Told the key of each upload that comes here; what of the store's it raises is the answer.
        extra_routes: Matched before the transcoded ones.
        health: What /health answers: 200 where its `status` is "ok", else 503.
        record: Told of every request: (route, verb, status, seconds until the answer began).
        limits: What one request may cost.
    """
    limits = limits or Limits()
    routes: list[BaseRoute] = [Route("/health", _Health(health), methods=["GET", "HEAD"])]
    if objects is not None:
        routes.append(objects_route(*objects, room or Room(), check_put))
    routes += [*extra_routes, *transcoding.routes(channel, services, limits)]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Edge, record=record)],
        exception_handlers={HTTPException: answer_http_exception, Refusal: answer_refusal},
    )
    app.router.redirect_slashes = False  # Edge has dropped them; a redirect would be built from the Host header
    return app


class _Health:
    """Tells a load balancer whether to send requests here."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers without asking for a key."""
        said = await self._health()
        status = 200 if said.get("status") == "ok" else 503
        await Answer(status, json.dumps(dict(said))).send(scope, send)

"""One HTTP request and its answer, as the parts of the shim hand it to one another.

Made by edge, used by every route; knows no rpc.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive, Scope, Send

KEY: Final = "tunesmith.exchange"  # in the ASGI scope

Headers = Iterable[tuple[str, str]]


@dataclass
class Exchange:
    """What edge and the route tell one another. edge makes it; the route that matched writes `route`."""

    request_id: str
    route: str = "unmatched"
    """The path template, a metric's label: never the path itself, which has no end of values."""


class Disconnected(Exception):
    """The caller closed the connection before the request was whole."""


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "application/json"

    async def send(self, scope: Scope, send: Send) -> None:
        """Sends it; to HEAD without the body."""
        headers = [("content-length", str(len(self.body))), ("content-type", self.media_type), *self.headers]
        await start(send, self.status, headers if self.status != 204 else self.headers)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


def exchange_of(scope: Scope) -> Exchange:
    """Returns the request's exchange; edge has made one for every request."""
    exchange = scope[KEY]
    assert isinstance(exchange, Exchange)
    return exchange


async def start(send: Send, status: int, headers: Headers) -> None:
    """Sends status and headers."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def chunk_of(receive: Receive) -> tuple[bytes, bool]:
    """Returns the next piece of the body and whether more follows.

    Raises:
        Disconnected: The caller went away.
    """
    event = await receive()
    if event["type"] == "http.disconnect":
        raise Disconnected
    return event.get("body", b""), event.get("more_body", False)


async def gone(receive: Receive) -> None:
    """Returns once the caller has closed the connection; whatever it still sends is dropped."""
    try:
        while True:
            await chunk_of(receive)
    except Disconnected:
        return

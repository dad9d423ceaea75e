"""What the parts of the shim tell one another of a request, and how they send an answer. Used by all; knows no rpc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive, Scope, Send

KEY: Final = "tunesmith.request_id"  # in the ASGI scope; edge writes it
SLASHES: Final = "tunesmith.slashes"  # likewise: how many the path had at its end, which it has lost

Headers = Iterable[tuple[str, str]]


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
        await start(send, self.status, headers if self.status not in (204, 304) else self.headers)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


def request_id_of(scope: Scope) -> str:
    """Returns the request's id; edge has given it one."""
    return str(scope[KEY])


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Returns the request's headers: of those that came more than once the first, for every part of the shim alike."""
    return dict(reversed(scope["headers"]))


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

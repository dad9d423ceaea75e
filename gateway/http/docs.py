"""The page at /docs: shows /openapi.json to people. Called by the server, which mounts the routes.

Three files of ours, in page/. The page loads them and the document, from this server and from nowhere else, and its
policy lets it do no more: no inline script, no other origin, no frame. Its links are relative, for a proxy may serve it
below a path of its own; so they lead astray from /docs/, which leads to /docs.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http.exchange import SLASHES, Answer
from gateway.http.openapi import Kept

_FILES: Final = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (("content-security-policy", _POLICY), ("referrer-policy", "no-referrer"))


def routes() -> list[BaseRoute]:
    """Returns the routes of the page and of what it loads; open to all."""
    folder = resources.files("gateway.http").joinpath("page")
    served = {
        path: Kept(folder.joinpath(name).read_bytes(), media_type, _HEADERS)
        for path, (name, media_type) in _FILES.items()
    }
    return [Route(path, _WithoutSlash(kept), methods=["GET", "HEAD"]) for path, kept in served.items()]


class _WithoutSlash:
    """Serves at one path alone; from that path and slashes behind it, it leads there."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 308 with a relative Location, or as what it serves."""
        if slashes := scope[SLASHES]:
            name = scope["path"].rpartition("/")[2]
            await Answer(308, b"", (("location", "../" * slashes + name),)).send(scope, send)
            return
        await self._kept(scope, receive, send)

"""The pages for people: the dashboard at / and the API's documentation at /docs. Called by the server, which mounts the
routes.

Files of ours, in page/. A page loads them from this server and from nowhere else, and its policy lets it do no more: no
inline script, no markup made of text, no other origin, no frame, no form that is sent. Both are open to all: what they
show, they ask for by the API, with the key of whoever looks. Their links are relative, for a proxy may serve them below
a path of its own; so they lead astray from /docs/, which leads to /docs, and from //, which leads to /.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http.exchange import SLASHES, Answer
from gateway.http.openapi import Kept

_PAGES: Final = {"/": "dashboard.html", "/docs": "docs.html"}
_LOADED: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = (("content-security-policy", _POLICY), ("referrer-policy", "no-referrer"))


def routes() -> list[BaseRoute]:
    """Returns the routes of the pages and of what they load; open to all."""
    folder = resources.files("gateway.http").joinpath("page")
    served = {
        path: Kept(folder.joinpath(name).read_bytes(), "text/html; charset=utf-8", _HEADERS)
        for path, name in _PAGES.items()
    }
    for file in folder.iterdir():
        media_type = _LOADED.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            served[f"/page/{file.name}"] = Kept(file.read_bytes(), media_type, _HEADERS)
    return [Route(path, _AtItsPath(kept), methods=["GET", "HEAD"]) for path, kept in served.items()]


class _AtItsPath:
    """Serves at one path alone; from that path and more slashes behind it, it leads there."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 308 with a relative Location, or as what it serves."""
        name = scope["path"].rpartition("/")[2]
        slashes = scope[SLASHES] if name else scope[SLASHES] - 1  # the root's own slash is its path
        if slashes > 0:
            await Answer(308, b"", (("location", "../" * slashes + name),)).send(scope, send)
            return
        await self._kept(scope, receive, send)

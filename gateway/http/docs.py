"""The page at /docs: shows /openapi.json to people. Called by the server, which mounts the routes.

Three files of ours, in page/. The page loads them and the document, from this server and from nowhere else, and its
policy lets it do no more: no inline script, no other origin, no frame.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.routing import BaseRoute, Route

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
    return [
        Route(path, Kept(folder.joinpath(name).read_bytes(), media_type, _HEADERS), methods=["GET", "HEAD"])
        for path, (name, media_type) in _FILES.items()
    ]

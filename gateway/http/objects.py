"""The local object store's signed URLs: PUT a picture, GET a LoRA, by whoever holds the URL.

Called by callers and trainers with URLs that the store signed; knows no asset. Only with a local store: S3 and its like
sign and serve their own.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, cast

import grpc
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http import errors
from gateway.http.exchange import Answer, Disconnected, chunk_of, gone, request_id_of, start
from gateway.status import Refusal
from store.objects.base import ObjectMissing, TooLarge
from store.objects.local import LocalObjects

PATH: Final = "/v1/objects/{key:path}"

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII | re.IGNORECASE)

# What a browser may show, told by its first bytes; anything else is bytes and nothing more.
_PICTURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))

# An upload is a stranger's: whatever it is, no script of it runs in our origin.
_HEADERS = (
    ("accept-ranges", "bytes"),
    ("cache-control", "private, no-store"),
    ("content-security-policy", "default-src 'none'; sandbox"),
    ("x-content-type-options", "nosniff"),
)


def route(objects: LocalObjects, most_bytes: int) -> BaseRoute:
    """Returns the route of all objects."""
    return Route(PATH, _Objects(objects, most_bytes), methods=["GET", "HEAD", "PUT"])


class _Objects:
    """ASGI app below the route."""

    def __init__(self, objects: LocalObjects, most_bytes: int) -> None:
        self._objects = objects
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. The expiry counts now, and not during it: a slow upload may outlive its URL."""
        key = scope["path_params"]["key"]
        try:
            self._check(HTTPConnection(scope), scope["method"], key)
            if scope["method"] == "PUT":
                answer: Answer | None = await self._put(scope, receive, key)
            else:
                answer = await self._get(scope, receive, send, key)
        except Refusal as refusal:
            answer = errors.refused(refusal, request_id_of(scope))
        if answer is not None:
            await answer.send(scope, send)

    def _check(self, request: HTTPConnection, verb: str, key: str) -> None:
        expires = request.query_params.get("expires", "")
        signature = request.query_params.get("signature", "")
        if not self._objects.verify(verb, key, expires, signature):
            if expires.isdecimal() and int(expires[:12]) < time.time():
                raise Refusal(
                    grpc.StatusCode.PERMISSION_DENIED, "URL_EXPIRED", "This URL has expired; ask for a new one."
                )
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "BAD_SIGNATURE", "This URL was not signed by us.")

    async def _put(self, scope: Scope, receive: Receive, key: str) -> Answer:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:18]) > self._most_bytes:
            raise errors.too_large(self._most_bytes)
        try:
            await self._objects.write(key, _body(receive), max_bytes=self._most_bytes)
        except TooLarge as exc:
            raise errors.too_large(self._most_bytes) from exc
        return Answer(200, b"{}")

    async def _get(self, scope: Scope, receive: Receive, send: Send, key: str) -> Answer | None:
        size = await self._objects.stat(key)
        if size is None:
            raise _missing()
        span = _span(dict(scope["headers"]), size)
        if span is None:
            message = f"The object has {size} bytes."
            refusal = Refusal(grpc.StatusCode.OUT_OF_RANGE, "RANGE_NOT_SATISFIABLE", message, http_status=416)
            return errors.refused(refusal, request_id_of(scope), [("content-range", f"bytes */{size}")])
        first, end = span
        partial = [("content-range", f"bytes {first}-{end - 1}/{size}")] if (first, end) != (0, size) else []
        reading = cast(AsyncGenerator[bytes, None], self._objects.read(key, first, end))
        async with aclosing(reading) as chunks:
            try:
                opening = await anext(chunks, b"")
            except ObjectMissing as exc:  # deleted since stat
                raise _missing() from exc
            kind = [("content-length", str(end - first)), ("content-type", _media_type(opening))]
            await start(send, 206 if partial else 200, (*kind, *_HEADERS, *partial))
            if scope["method"] == "GET":
                await _send_all(opening, chunks, receive, send)
        await send({"type": "http.response.body", "body": b""})
        return None


async def _send_all(opening: bytes, chunks: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    """Sends the body; stops reading gigabytes for a caller that has left, of which `send` says nothing."""
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await send({"type": "http.response.body", "body": opening, "more_body": True})
        async for chunk in chunks:
            if leaving.done():
                raise Disconnected
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        chunk, more = await chunk_of(receive)
        if chunk:
            yield chunk


def _missing() -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, "OBJECT_MISSING", "Nothing was uploaded here.")


def _span(headers: dict[bytes, bytes], size: int) -> tuple[int, int] | None:
    """Returns the first byte and the one past the last; None where the range lies outside.

    A range that is several, malformed or conditional is not honoured, as HTTP allows: the whole object is sent.
    """
    match = _RANGE.fullmatch(headers.get(b"range", b"").decode("latin-1").strip())
    if match is None or b"if-range" in headers or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        last = min(int(match[2]), size)
        return (size - last, size) if last else None
    first = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if match[2] and int(match[2]) < first:
        return 0, size
    return (first, end) if first < size else None


def _media_type(opening: bytes) -> str:
    return next((kind for magic, kind in _PICTURES if opening.startswith(magic)), "application/octet-stream")

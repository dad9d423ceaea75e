"""Signed URLs that lead to the gateway: PUT a picture, GET a LoRA, by whoever holds the URL.

Called by callers and trainers with URLs that the gateway signed; knows no asset. A folder's objects all come and go
here. S3 serves its own; what callers put comes through here all the same, and is passed on at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import grpc
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.http import errors
from gateway.http.exchange import Answer, Disconnected, chunk_of, gone, headers_of, request_id_of, start
from gateway.http.room import Room
from gateway.status import Refusal, refusal
from store.errors import StoreError
from store.objects import Objects
from store.objects.base import ObjectMissing, TooLarge
from store.objects.local import LocalObjects, OpenObject
from store.objects.signing import Signer

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


#: Told the key of a PUT before its bytes are asked for. Raises StoreError where they would be for nothing.
CheckPut = Callable[[str], Awaitable[None]]


async def any_key(key: str) -> None:
    """Lets every PUT pass."""


def route(objects: Objects, signer: Signer, room: Room, check_put: CheckPut = any_key) -> BaseRoute:
    """Returns the route of all objects. `room`: the memory that uploads may take."""
    verbs = ["GET", "HEAD", "PUT"] if isinstance(objects, LocalObjects) else ["PUT"]
    return Route(PATH, _Objects(objects, signer, room, check_put), methods=verbs)


class _Objects:
    """ASGI app below the route."""

    def __init__(self, objects: Objects, signer: Signer, room: Room, check_put: CheckPut) -> None:
        self._objects = objects
        self._signer = signer
        self._room = room
        self._check_put = check_put

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. The expiry counts now, and not during it: a slow upload may outlive its URL."""
        key = scope["path_params"]["key"]
        query = HTTPConnection(scope).query_params
        try:
            self._check(query, scope["method"], key)
            if scope["method"] == "PUT":
                answer: Answer | None = await self._put(scope, receive, key, query)
            else:
                answer = await self._get(scope, receive, send, key)
        except Refusal as refused:
            answer = errors.refused(refused, request_id_of(scope))
        except StoreError as error:
            answer = errors.refused(refusal(error), request_id_of(scope))
        if answer is not None:
            await answer.send(scope, send)

    def _check(self, query: QueryParams, verb: str, key: str) -> None:
        if not self._signer.verify(verb, key, query):
            expires = query.get("expires", "")
            if expires.isdecimal() and int(expires[:12]) < time.time():
                raise Refusal(
                    grpc.StatusCode.PERMISSION_DENIED, "URL_EXPIRED", "This URL has expired; ask for a new one."
                )
            sentence = "This URL was not signed by us, or for another verb, path, expiry or size."
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "BAD_SIGNATURE", sentence)

    async def _put(self, scope: Scope, receive: Receive, key: str, query: QueryParams) -> Answer:
        most_bytes = int(query["most"])
        headers = headers_of(scope)
        if b"content-range" in headers:  # RFC 9110, 14.5
            sentence = "A PUT brings the whole object; this one says by its Content-Range that it brings a part."
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "PARTIAL_UPLOAD", sentence, http_status=400)
        said = headers.get(b"content-length", b"")
        declared = int(said[:18]) if said.isdigit() else None  # None: chunked
        if declared is not None and declared > most_bytes:
            raise errors.too_large(most_bytes)
        await self._check_put(key)
        first = most = self._objects.write_memory(most_bytes if declared is None else declared)
        gathered_bytes = self._objects.gathered_bytes
        if declared is None and gathered_bytes is not None:  # most pictures are far smaller than they might be
            first = min(self._objects.write_memory(gathered_bytes), most)
        body = _body(receive, declared)
        try:
            async with self._room.held(query["owner"], first, most) as grow:  # before the first byte is asked for
                if first < most:
                    assert gathered_bytes is not None
                    body = _grown(body, gathered_bytes, grow)
                await self._objects.write(key, body, max_bytes=most_bytes)
        except TooLarge as exc:
            raise errors.too_large(most_bytes) from exc
        return Answer(200, b"{}")

    async def _get(self, scope: Scope, receive: Receive, send: Send, key: str) -> Answer | None:
        assert isinstance(self._objects, LocalObjects)  # of no other store a GET leads here
        try:
            async with self._objects.opened(key) as opened:
                return await _send_object(opened, scope, receive, send)
        except ObjectMissing:
            refused = Refusal(grpc.StatusCode.NOT_FOUND, "OBJECT_MISSING", "Nothing was uploaded here.")
            return errors.refused(refused, request_id_of(scope))


async def _send_object(opened: OpenObject, scope: Scope, receive: Receive, send: Send) -> Answer | None:
    size = opened.size_bytes
    headers = dict(scope["headers"]) if scope["method"] == "GET" else {}  # a HEAD has no range
    span = _span(headers, size, opened.etag)
    if span is None:
        message = f"The object has {size} bytes."
        refused = Refusal(grpc.StatusCode.OUT_OF_RANGE, "RANGE_NOT_SATISFIABLE", message, http_status=416)
        return errors.refused(refused, request_id_of(scope), [("content-range", f"bytes */{size}")])
    first, end = span
    partial = [("content-range", f"bytes {first}-{end - 1}/{size}")] if (first, end) != (0, size) else []
    opening = b"".join([chunk async for chunk in opened.read(0, 16)])
    kind = [("content-length", str(end - first)), ("content-type", _media_type(opening)), ("etag", opened.etag)]
    await start(send, 206 if partial else 200, (*kind, *_HEADERS, *partial))
    if scope["method"] == "GET":
        async with aclosing(opened.read(first, end)) as chunks:
            await _send_all(chunks, receive, send)
    await send({"type": "http.response.body", "body": b""})
    return None


async def _send_all(chunks: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    """Sends the body; stops reading gigabytes for a caller that has left, of which `send` says nothing."""
    leaving = asyncio.ensure_future(gone(receive))
    try:
        async for chunk in chunks:
            if leaving.done():
                raise Disconnected
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _body(receive: Receive, declared: int | None) -> AsyncIterator[bytes]:
    """The request's body.

    Raises:
        Refusal: It has not the length that was declared. HTTP/1.1 servers cut a longer body off, and take the end of a
            connection for the caller's leaving; others need not.
    """
    more, size = True, 0
    while more:
        chunk, more = await chunk_of(receive)
        size += len(chunk)
        if declared is not None and (size > declared or (size < declared and not more)):
            message = f"Content-Length says {declared} bytes, and {'more than that' if size > declared else size} came."
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "LENGTH_MISMATCH", message, http_status=400)
        if chunk:
            yield chunk


async def _grown(chunks: AsyncIterator[bytes], size: int, grow: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
    """The same, `grow` called once: before so many bytes have been handed on."""
    left = size
    async for chunk in chunks:
        if left > 0 and (left := left - len(chunk)) <= 0:
            await grow()
        yield chunk


def _span(headers: dict[bytes, bytes], size: int, etag: str) -> tuple[int, int] | None:
    """Returns the first byte and the one past the last; None where the range lies outside.

    A range that is several or malformed, or was meant for another object than this one, is not honoured, as HTTP
    allows: the whole object is sent.
    """
    if headers.get(b"if-range", etag.encode()).strip() != etag.encode():
        return 0, size
    match = _RANGE.fullmatch(headers.get(b"range", b"").decode("latin-1").strip())
    if match is None or not (match[1] or match[2]):
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

"""The outermost layer of the HTTP side: names each request, tidies its path, measures, logs, and answers what broke.

Called by app; knows no route. What it logs holds no query and no header: signed URLs and keys stand there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import grpc
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import request_ids
from gateway.http import errors
from gateway.http.exchange import KEY, SLASHES, Answer, Disconnected, headers_of, request_id_of
from gateway.status import Refusal

log = structlog.get_logger()

Recorder = Callable[[str, str, int, float], None]
"""(route's template, verb, status, seconds until the answer began): one request was answered."""

_SLASHES = re.compile("/{2,}")
_SLASHES_SENT = re.compile(rb"/{2,}")
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/health"})  # asked every few seconds by whoever watches us


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, record: Recorder) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = headers_of(scope)
        request_id = scope[KEY] = request_ids.accepted(given.get(request_ids.HEADER.encode()))
        trace = request_ids.traceparent(given.get(request_ids.TRACE_HEADER.encode()))
        _tidy(scope)
        # A pipelined request's task begins with what the one before it has bound.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **request_ids.trace_fields(trace))
        asker: dict[str, str] = {}
        request_ids.asker.set(asker)
        started = time.perf_counter()
        status, seconds = 0, 0.0

        async def send_named(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - started
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Disconnected:
            status = status or 499
        except Exception:
            log.exception("An HTTP request failed for a fault of ours.", action="http.failed")
            if status:
                raise  # half an answer is out: the server must break the connection, so that it is not taken for whole
            refusal = Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "Internal error.")
            await errors.refused(refusal, request_id).send(scope, send_named)
        finally:
            self._finish(scope, status, seconds or time.perf_counter() - started, asker)

    def _finish(self, scope: Scope, status: int, seconds: float, asker: dict[str, str]) -> None:
        # A metric's labels: verbs and paths have no end of values, so only those that we know.
        verb = scope["method"] if scope["method"] in _VERBS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        self._record(route, verb, status, seconds)
        # The path as it was sent: decoded, it may hold line breaks. It has no query.
        path = scope["raw_path"].decode("latin-1")[:200]
        write = log.debug if route in _QUIET else log.info
        sentence = f"{verb} {path} was answered {status} after {seconds * 1000:.1f} ms."
        write(sentence, action="http.answered", route=route, status=status, **asker)


def _tidy(scope: Scope) -> None:
    """Collapses slashes and drops one at the end, without a redirect, which no SDK follows for a POST.

    The hosted service's old SDK asks for //v1/tune.
    """
    sent: bytes = scope.get("raw_path") or scope["path"].encode()
    scope[SLASHES] = len(sent) - len(sent.rstrip(b"/"))
    if b"//" in sent or sent.endswith(b"/"):
        sent = _SLASHES_SENT.sub(b"/", sent)
        scope["path"] = _SLASHES.sub("/", scope["path"])
        if len(sent) > 1:
            sent, scope["path"] = sent.removesuffix(b"/"), scope["path"].removesuffix("/")
    scope["raw_path"] = sent


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answers what starlette's own routing says: no such path, not this verb."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        refusal = errors.no_route()
    elif error.status_code == 405:
        refusal = errors.wrong_method(headers.get("Allow", "other verbs"))
    else:
        refusal = Refusal(grpc.StatusCode.UNKNOWN, "HTTP_ERROR", str(error.detail), http_status=error.status_code)
    answer = errors.refused(refusal, request_id_of(request.scope))
    return Response(answer.body, answer.status, headers | dict(answer.headers), answer.media_type)


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answers a refusal that a route let pass."""
    assert isinstance(error, Refusal)
    answer: Answer = errors.refused(error, request_id_of(request.scope))
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)

"""Refusals as the HTTP caller reads them: the shapes of docs/api.md, "Errors".

Called by every route; knows no rpc. 422 is `{"detail": [{loc, msg, type}]}`; all others are
`{"detail", "code", "reason", "request_id"}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import grpc

from gateway.http.exchange import Answer
from gateway.http.fault import Fault
from gateway.status import Refusal


def invalid(faults: Sequence[Fault]) -> Answer:
    """Returns the answer to a request with faults: all of them."""
    detail = [{"loc": list(fault.loc), "msg": fault.msg, "type": fault.type} for fault in faults]
    # ASCII: a key of the caller's may hold a lone surrogate, which UTF-8 cannot.
    return Answer(422, json.dumps({"detail": detail}).encode())


def refused(refusal: Refusal, request_id: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Returns the answer that a refusal stands for."""
    if refusal.http_status == 422:
        return invalid([Fault(("body",), refusal.message, "value_error")])
    return Answer(refusal.http_status, body(refusal, request_id), (*headers, *_headers(refusal)))


def body(refusal: Refusal, request_id: str) -> bytes:
    """Returns a refusal as JSON; a stream that has begun ends with it."""
    said = {"detail": refusal.message, "code": refusal.code.name, "reason": refusal.reason, "request_id": request_id}
    return json.dumps(said).encode()


def _headers(refusal: Refusal) -> list[tuple[str, str]]:
    headers = []
    if refusal.http_status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if refusal.retry_after_seconds is not None:
        headers.append(("retry-after", str(max(1, math.ceil(refusal.retry_after_seconds)))))
    return headers


def no_route() -> Refusal:
    """Nothing is served at the path."""
    return Refusal(grpc.StatusCode.NOT_FOUND, "NO_ROUTE", "Nothing is served at this path.")


def wrong_method(allowed: str) -> Refusal:
    """The path is served, but not with this verb."""
    message = f"This path allows {allowed} only."
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", message, http_status=405)


def wrong_media_type(got: str) -> Refusal:
    """The body is not JSON."""
    message = f"The body must be application/json, in UTF-8; it is {got[:100]}."
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_MEDIA_TYPE", message, http_status=415)


def too_slow(sentence: str) -> Refusal:
    """Headers or body do not come, or not fast enough."""
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW", sentence, http_status=408)


def too_large(most_bytes: int) -> Refusal:
    """The body or upload exceeds its bound."""
    message = f"At most {most_bytes} bytes are taken here."
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", message, http_status=413)

"""Names requests, so that a caller's report, a log line and an error can be laid side by side; and reads by which name
they go in the caller's own tracing (W3C Trace Context, level 2: https://www.w3.org/TR/trace-context/). And says whose a
request is to who logs its answer outside of the rpc.

Called by the interceptors and by http/edge; knows neither gRPC nor HTTP.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

HEADER = "x-request-id"  # over HTTP and in gRPC metadata
TRACE_HEADER = "traceparent"  # likewise

# What a log line, a header and a metric take without harm.
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Version, trace, parent, flags. A later version than 00 may add fields; what we know of it stands in front.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: What http/edge lays out for each request, and the interceptors write into: tenant_id and key_id. An rpc has a task of
#: its own, so what it binds for the log does not come back; what it writes into this, does. None: nobody wants to know.
asker: ContextVar[dict[str, str] | None] = ContextVar("asker", default=None)


def accepted(given: str | bytes | None) -> str:
    """Returns the caller's own id where it is harmless, else a new one."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    return text if text and _HARMLESS.fullmatch(text) else secrets.token_hex(16)


def traceparent(given: str | bytes | None) -> str | None:
    """Returns the caller's trace context; None where none came, or what came is none: the rule is to go on without."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given or ""
    known = _TRACEPARENT.match(text)
    if known is None:
        return None
    rest = text[known.end() :]
    return known[0] if not rest or (rest[0] == "-" and not text.startswith("00")) else None


def trace_fields(traceparent: str | None) -> dict[str, str]:
    """What log lines say of it: the trace's id, 32 hexadecimal digits; nothing where there is none."""
    return {} if traceparent is None else {"trace_id": traceparent.split("-")[1]}

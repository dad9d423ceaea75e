"""Names requests, so that a caller's report, a log line and an error can be laid side by side.

Called by the interceptors and by http/edge; knows neither gRPC nor HTTP.
"""

from __future__ import annotations

import re
import secrets

HEADER = "x-request-id"  # over HTTP and in gRPC metadata

# What a log line, a header and a metric take without harm.
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def accepted(given: str | bytes | None) -> str:
    """Returns the caller's own id where it is harmless, else a new one."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    return text if text and _HARMLESS.fullmatch(text) else secrets.token_hex(16)

"""Signs a webhook as Standard Webhooks wants it (github.com/standard-webhooks, version 1.0.0). Called by delivery;
knows no HTTP client. The receiver's half is in libraries of that name, and a test verifies with one.

    webhook-id         the message's, the same at each try
    webhook-timestamp  seconds since 1970, of this try: a receiver refuses old ones, so that nobody can play one again
    webhook-signature  "v1," and base64 of HMAC-SHA256 over "{id}.{timestamp}.{body}"; one a secret, with spaces between
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers."""
    assert secrets, "a webhook without a signature could be anybody's"
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode() for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)

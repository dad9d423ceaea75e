"""Signs URLs that lead to the gateway itself, and verifies them. Called by both stores and by gateway/http/objects;
knows no store and no asset.

Such a URL carries all the authority that there is: whoever has it may do what it names, until it expires.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from urllib.parse import quote

from store.objects.base import checked

PATH = "/v1/objects/"

_TERMS = {"GET": ("expires",), "PUT": ("expires", "most", "owner")}
_NUMBER = re.compile(r"[0-9]{1,18}")
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Signer:
    """Any replica verifies what another one has signed: they share the secret, and nothing is remembered."""

    def __init__(self, public_url: str, secret: bytes) -> None:
        """`public_url`: the gateway's."""
        if not secret:
            raise ValueError("the signing secret is empty; wanted some random bytes")
        self._public_url = public_url.rstrip("/")
        self._secret = secret

    def get(self, key: str, expires_seconds: float) -> str:
        """{public_url}/v1/objects/{key}?expires={unix seconds}&signature={HMAC-SHA256}."""
        return self._sign("GET", key, {"expires": _after(expires_seconds)})

    def put(self, key: str, expires_seconds: float, most_bytes: int, owner: str) -> str:
        """As get, with &most={bytes}&owner={tenant}: what the key is for, and whose, was known here, and is not where
        the body comes.
        """
        return self._sign("PUT", key, {"expires": _after(expires_seconds), "most": str(most_bytes), "owner": owner})

    def verify(self, method: str, key: str, query: Mapping[str, str]) -> bool:
        """Whether it was signed by us for this method and key, and has not expired. HEAD is as GET."""
        method = "GET" if method == "HEAD" else method
        terms = {name: query.get(name, "") for name in _TERMS[method]}
        signature = query.get("signature", "")
        if not (all(_is_sound(name, value) for name, value in terms.items()) and signature.isascii()):
            return False
        mine = self._signature(method, key, terms)
        return hmac.compare_digest(mine, signature) and int(terms["expires"]) > time.time()

    def _sign(self, method: str, key: str, terms: Mapping[str, str]) -> str:
        said = "&".join(f"{name}={value}" for name, value in terms.items())
        return f"{self._public_url}{PATH}{quote(checked(key))}?{said}&signature={self._signature(method, key, terms)}"

    def _signature(self, method: str, key: str, terms: Mapping[str, str]) -> str:
        """Of method, key and terms, and of no header: clients differ in what they send."""
        message = "\n".join([method, key, *(terms[name] for name in _TERMS[method])])
        return hmac.new(self._secret, message.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def _after(seconds: float) -> str:
    return str(int(time.time() + seconds))


def _is_sound(name: str, value: str) -> bool:
    return (_OWNER if name == "owner" else _NUMBER).fullmatch(value) is not None

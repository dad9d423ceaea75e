"""Signs URLs that lead to the gateway itself, and verifies them. Called by both stores and by gateway/http/objects;
knows no store and no asset.

Such a URL carries all the authority that there is: whoever has it may do what it names, until it expires.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

from store.objects.base import checked

PATH = "/v1/objects/"


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

    def put(self, key: str, expires_seconds: float, most_bytes: int) -> str:
        """As get, with &most={bytes}: what the key is for was known here, and is not where the body comes."""
        return self._sign("PUT", key, {"expires": _after(expires_seconds), "most": str(most_bytes)})

    def verify(self, method: str, key: str, query: Mapping[str, str]) -> bool:
        """Whether it was signed by us for this method and key, and has not expired. HEAD is as GET."""
        method = "GET" if method == "HEAD" else method
        terms = {name: query.get(name, "") for name in _terms(method)}
        signature = query.get("signature", "")
        if not (all(map(_is_number, terms.values())) and signature.isascii()):
            return False
        mine = self._signature(method, key, terms)
        return hmac.compare_digest(mine, signature) and int(terms["expires"]) > time.time()

    def _sign(self, method: str, key: str, terms: Mapping[str, str]) -> str:
        said = "&".join(f"{name}={value}" for name, value in terms.items())
        return f"{self._public_url}{PATH}{quote(checked(key))}?{said}&signature={self._signature(method, key, terms)}"

    def _signature(self, method: str, key: str, terms: Mapping[str, str]) -> str:
        """Of method, key and terms, and of no header: clients differ in what they send."""
        message = "\n".join([method, key, *(terms[name] for name in _terms(method))])
        return hmac.new(self._secret, message.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def _terms(method: str) -> tuple[str, ...]:
    return ("expires", "most") if method == "PUT" else ("expires",)


def _after(seconds: float) -> str:
    return str(int(time.time() + seconds))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18

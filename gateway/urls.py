"""Judges the text of a URL that somebody names: every fault of it at once. Called by outbound, which adds what is wrong
with an address; sends nothing and resolves nothing.

It takes httpx's parser: its parts, not the text, are both what is judged and what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from gateway.addresses import literal

LONGEST_URL = 4096  # characters; signed URLs have up to two thousand
LONGEST_NAME, LONGEST_LABEL = 253, 63  # characters of a host's name, and between two of its dots (RFC 1035)
_HOST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.:")  # after IDNA, in lower case
_PORTS = {"http": 80, "https": 443}


def judged(text: str, *, https_only: bool = False) -> tuple[httpx.URL | None, list[str]]:
    """A URL's parts, None where it has none that all parsers would read alike; and a sentence for each fault. Without
    any fault there are settings by which it may be asked.
    """
    faults = []
    if len(text) > LONGEST_URL:
        faults.append(f"it has {len(text)} characters; at most {LONGEST_URL} are allowed")
    # Where parsers differ, and one reads another host than the next.
    if "\\" in text or any(character.isspace() or not character.isprintable() for character in text):
        faults.append("it holds a space, a backslash or a control character")
    if faults:
        return None, faults
    try:
        url = httpx.URL(text)
        host = url.host and url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        return None, ["it is not a URL; wanted https://HOST/PATH"]
    return url, [*_scheme_faults(url, https_only), *_port_faults(url), *_host_faults(url, host)]


def port_of(url: httpx.URL) -> int:
    """The port that it says or means."""
    return _PORTS[url.scheme] if url.port is None else url.port


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Whom it asks."""
    return url.scheme, url.host, port_of(url)


def _scheme_faults(url: httpx.URL, https_only: bool) -> Iterator[str]:
    if url.scheme not in _PORTS or (https_only and url.scheme != "https"):
        yield f"its scheme is {url.scheme[:20]!r}; wanted {'https' if https_only else 'http or https'}"
    if url.userinfo:
        yield "it holds a user or a password; wanted a URL without"


def _port_faults(url: httpx.URL) -> Iterator[str]:
    if url.port is not None and url.port not in (80, 443) and not 1024 <= url.port <= 65535:
        yield f"its port is {url.port}; wanted 80, 443, or 1024 to 65535"


def _host_faults(url: httpx.URL, host: str) -> Iterator[str]:
    """At most one: what is no host at all is not looked at further."""
    name = host.removesuffix(".")
    labels = name.split(".")
    if not host:
        if url.scheme in ("http", "https", ""):  # others need none, and will not do anyhow
            yield "its host is missing; wanted https://HOST/PATH"
    elif ":" in host and "%" in host:
        yield f"its host {host[:100]!r} names a zone of some machine's own network; wanted an address without '%'"
    elif not _HOST.issuperset(host):
        yield f"its host {host[:100]!r} has characters that neither a name nor an address has"
    elif not _may_be_one(host):
        yield f"its host {host[:100]!r} is neither name nor address"
    elif "" in labels:
        yield f"its host {host[:100]!r} has nothing before, or between, two dots"
    elif longest := max((label for label in labels if len(label) > LONGEST_LABEL), key=len, default=""):
        yield f"its host has {len(longest)} characters between two dots; at most {LONGEST_LABEL} are allowed"
    elif len(name) > LONGEST_NAME:
        yield f"its host has {len(name)} characters; at most {LONGEST_NAME} are allowed"


def _may_be_one(host: str) -> bool:
    try:
        literal(host)
    except ValueError:
        return False
    return True

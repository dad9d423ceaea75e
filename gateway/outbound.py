"""An HTTP client for URLs that callers name: it reaches public addresses and those that the operator allows, and no
others. Used by fetches and webhooks; knows neither.

A caller who names a URL lets the gateway knock at it from within the operator's network (SSRF). Hence, for each request
and for each hop of a redirect:

    URL --parsed once--> http or https, host, port --resolved once--> addresses, all of them public --> connected to
    one of just these; the Host header, TLS's name and the certificate's check stay the URL's

What was checked is what is connected to, so a name whose next answer is 127.0.0.1 gains nothing (DNS rebinding). This
is httpcore under a network backend of ours, not httpx or aiohttp: it does exactly one exchange. What would have to be
switched off elsewhere, it has not: redirects, proxies and credentials from the environment, cookies, decompression.
Of httpx it takes the URL parser (urls.py).

What a caller is told does not depend on what there is within the network: a name that does not exist, one that leads to
a private address, and a public address where nobody listens are all UNREACHABLE; and the first two, which will hardly
pass, are given up alike soon (OutboundNowhere). The operator's log tells them apart.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx
import structlog

from gateway.addresses import Network, is_in, is_own, is_public, literal
from gateway.resolver import Resolver
from gateway.urls import judged, origin

REDIRECTS = 5  # hops that a GET follows
CONNECT = 10.0  # seconds for the resolver, and for each address
ADDRESSES = 4  # of one name that are tried
IDLE = 30.0  # seconds without a byte
ANSWER_BYTES = 4096  # of a POST's answer that are read
USER_AGENT = f"tunesmith/{version('tunesmith')}"
MOVED = (301, 302, 303, 307, 308)
#: Answers that may be another one later.
PASSING = (408, 425, 429)

#: What a resolver says of a name that does not exist or has no address; of its own faults it says EAI_AGAIN.
NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)

#: The addresses of a host, as text. Raises OSError where it has none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

log = structlog.get_logger(__name__)
# Its debug lines tell the headers of answers, and a redirect's Location is often a signed URL.
logging.getLogger("httpcore").setLevel(logging.INFO)


class OutboundError(Exception):
    """Nothing was got: a stable word, and a sentence that the caller may read."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class OutboundRefused(OutboundError, ValueError):
    """This URL will never do: URL_NOT_ALLOWED, ADDRESS_NOT_PUBLIC, TOO_MANY_REDIRECTS, TOO_LARGE, ENCODING_NOT_ALLOWED
    or STATUS_NOT_OK.
    """


class OutboundFailed(OutboundError):
    """It may do another time: UNREACHABLE, TLS_FAILED, TIMED_OUT, BROKEN_OFF or STATUS_NOT_OK."""


class OutboundNowhere(OutboundFailed):
    """It will hardly do another time: the resolver knows no address of the host's, or one that is not to be reached.
    UNREACHABLE.
    """


@dataclass(frozen=True)
class Answer:
    """What a POST was answered."""

    status: int
    """Whatever it is: a redirect is an answer like any other, and not followed."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    """At most its first ANSWER_BYTES."""


class Outbound:
    """The client. Each request has a connection of its own; how many there are at a time is the user's to limit.

    Args:
        allow: Networks that may be reached though they are not public.
        deny: Networks that may not be reached though they are public, or allowed.
        resolve: How names become addresses; by default by the system's resolver.
        tls: What certificates are checked against; by default the system's authorities, or those of SSL_CERT_FILE.
    """

    def __init__(
        self,
        *,
        allow: Sequence[Network] = (),
        deny: Sequence[Network] = (),
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._resolver = Resolver()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_GuardedNetwork(self._may_reach, resolve or self._resolver.resolve),
        )

    async def aclose(self) -> None:
        """Ends what is under way."""
        await self._pool.aclose()
        self._resolver.close()

    def faults(self, url: str) -> list[OutboundRefused]:
        """Judges a URL without any traffic, for the moment when a caller names it: each reason why it will never do."""
        parts, faults = judged(url)
        return [OutboundRefused("URL_NOT_ALLOWED", fault) for fault in faults] + self._address_faults(parts)

    async def post(
        self, url: str, *, content: bytes, headers: Mapping[str, str], timeout_seconds: float, https_only: bool = False
    ) -> Answer:
        """One POST.

        Raises:
            OutboundRefused: The URL may not be asked.
            OutboundFailed: There was no answer.
        """
        judged = self._judged(url, https_only=https_only)
        async with (
            _within(timeout_seconds, judged),
            self._exchange("POST", judged, headers, content) as response,
        ):
            body = b""
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) >= ANSWER_BYTES:
                    break
            return Answer(response.status, _named(response.headers), body[:ANSWER_BYTES])

    @asynccontextmanager
    async def stream(
        self,
        url: str,
        *,
        max_bytes: int,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A GET's bytes as they come, through at most REDIRECTS redirects, each checked like the first URL.

        Args:
            max_bytes: Not one byte more is handed out.
            timeout_seconds: From the first hop to the end of the block.
            secret_headers: Sent over https alone, and to no other origin than the URL's.

        Raises:
            OutboundRefused: The URL, or where it leads, may not be asked; or the answer is none to be taken.
            OutboundFailed: No whole answer came.
        """
        at = self._judged(url, https_only=bool(secret_headers))
        given = dict(secret_headers or {})
        async with _within(timeout_seconds, at):
            for _ in range(REDIRECTS + 1):
                async with self._exchange("GET", at, {**(headers or {}), **given}) as response:
                    location = _named(response.headers).get("location")
                    if response.status not in MOVED or location is None:
                        _take(at, response, max_bytes)
                        async with aclosing(_chunks(at, response, max_bytes)) as chunks:
                            yield chunks
                        return
                following = self._next(at, location)
                if origin(following) != origin(at):
                    given = {}
                at = following
        raise OutboundRefused("TOO_MANY_REDIRECTS", f"the URL redirects more than {REDIRECTS} times")

    def _next(self, at: httpx.URL, location: str) -> httpx.URL:
        try:
            joined = str(at.join(location))
        except (httpx.InvalidURL, ValueError) as exc:
            raise OutboundRefused("URL_NOT_ALLOWED", f"{at.host} redirects to what is not a URL") from exc
        return self._judged(joined, https_only=at.scheme == "https")

    def _judged(self, text: str, *, https_only: bool = False) -> httpx.URL:
        """The URL in its parts, where they are allowed whatever the name resolves to."""
        url = askable(text, https_only=https_only)
        for fault in self._address_faults(url):
            raise fault
        return url

    def _address_faults(self, url: httpx.URL | None) -> list[OutboundRefused]:
        host = "" if url is None else url.raw_host.decode("ascii")
        try:
            address = literal(host)
        except ValueError:  # told already: it is neither name nor address
            return []
        if address is None or self._may_reach(str(address)):
            return []
        return [OutboundRefused("ADDRESS_NOT_PUBLIC", f"its host {host} is not a public address")]

    def _may_reach(self, address: str) -> bool:
        parsed = ip_address(address)
        if is_in(parsed, self._deny):
            return False
        return (is_public(parsed) and not is_own(parsed)) or is_in(parsed, self._allow)

    @asynccontextmanager
    async def _exchange(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpcore.Response]:
        """One request and the head of its answer."""
        sent = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": USER_AGENT, **headers}
        parts = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        waits = {"connect": CONNECT, "read": IDLE, "write": IDLE}
        pairs = [(name.encode("ascii"), value.encode("utf-8")) for name, value in sent.items()]
        with _told(url):
            async with self._pool.stream(
                method, parts, headers=pairs, content=content, extensions={"timeout": waits}
            ) as response:
                yield response


class _Nowhere(httpcore.ConnectError):
    """No address is there to connect to."""


class _GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Opens connections by name to addresses that it has judged itself."""

    def __init__(self, may_reach: Callable[[str], bool], resolve: Resolve) -> None:
        self._may_reach = may_reach
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  - the base class's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to one of the host's addresses, or to none where one of them is not to be reached."""
        try:
            async with asyncio.timeout(timeout):
                addresses = [host] if literal(host) else await self._resolve(host, port)
        except (OSError, UnicodeError, TimeoutError) as exc:
            lasts = isinstance(exc, UnicodeError) or getattr(exc, "errno", None) in NO_SUCH_NAME
            raise (_Nowhere if lasts else httpcore.ConnectError)("it has no address") from exc
        if hidden := [address for address in addresses if not self._may_reach(address)]:
            log.warning(
                f"{host} leads to {hidden[0]}, which is not public: it is not asked",
                action="outbound_refused",
                host=host,
            )
            raise _Nowhere("it leads to an address that is not public")
        failure: Exception = _Nowhere("it has no address")
        for address in addresses[:ADDRESSES]:
            try:
                # An address, never a name: nothing is resolved a second time.
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure


def askable(text: str, *, https_only: bool = False) -> httpx.URL:
    """A URL's parts, where there are settings by which they may be asked.

    Raises:
        OutboundRefused: It will never do.
    """
    url, faults = judged(text, https_only=https_only)
    if url is None or faults:
        raise OutboundRefused("URL_NOT_ALLOWED", "; ".join(faults))
    return url


def _take(url: httpx.URL, response: httpcore.Response, max_bytes: int) -> None:
    """Lets the answer pass by its head."""
    if not 200 <= response.status < 300:
        passing = response.status in PASSING or response.status >= 500
        sentence = f"{url.host} answered {response.status}"
        raise (OutboundFailed if passing else OutboundRefused)("STATUS_NOT_OK", sentence)
    headers = _named(response.headers)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        # A kilobyte may unpack to a gigabyte, and the limit is on what is kept.
        sentence = f"{url.host} answered with {encoding[:40]!r} encoding, though identity was asked for"
        raise OutboundRefused("ENCODING_NOT_ALLOWED", sentence)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(url, max_bytes)


async def _chunks(url: httpx.URL, response: httpcore.Response, max_bytes: int) -> AsyncGenerator[bytes]:
    """The answer's bytes."""
    received = 0
    async for chunk in response.aiter_stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(url, max_bytes)
        yield chunk


def _too_large(url: httpx.URL, max_bytes: int) -> OutboundRefused:
    return OutboundRefused("TOO_LARGE", f"{url.host} answered with more than the {max_bytes} bytes that are allowed")


def _named(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("ascii").lower(): value.decode("latin-1") for name, value in headers}


@asynccontextmanager
async def _within(timeout_seconds: float, url: httpx.URL) -> AsyncIterator[None]:
    """Ends the block when the whole time is over, and says so in our words."""
    clock = asyncio.timeout(timeout_seconds)
    try:
        async with clock:
            yield
    except TimeoutError as exc:
        if not clock.expired():
            raise  # the block's own
        raise OutboundFailed("TIMED_OUT", f"{url.host} took longer than {timeout_seconds:g} s") from exc


@contextmanager
def _told(url: httpx.URL) -> Iterator[None]:
    """Says in our words what went wrong on the way."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
        if any(isinstance(cause, ssl.SSLError) for cause in exc.args):
            raise OutboundFailed("TLS_FAILED", f"{url.host} shows no certificate that is valid for it") from exc
        failed = OutboundNowhere if isinstance(exc, _Nowhere) else OutboundFailed
        raise failed("UNREACHABLE", f"{url.host} cannot be reached at a public address") from exc
    except httpcore.TimeoutException as exc:
        raise OutboundFailed("TIMED_OUT", f"{url.host} was silent for {IDLE:g} s") from exc
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as exc:
        raise OutboundFailed("BROKEN_OFF", f"the answer of {url.host} broke off, or was not HTTP") from exc

"""The client for callers' URLs: real servers on loopback, which is allowed where they should be reached."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import outbound
from gateway.outbound import Outbound, OutboundError, OutboundFailed, OutboundNowhere, OutboundRefused
from tests.servers.site import Site, secure
from tests.servers.uvicorn import served

LOOPBACK = [ip_network("127.0.0.0/8")]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def client(**given: Any) -> AsyncIterator[Outbound]:
    # Reading the system's authorities takes its time, and most of these servers speak no TLS.
    made = Outbound(**{"allow": LOOPBACK, "tls": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **given})
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def raw(handler: Handler) -> AsyncIterator[str]:
    """A server that says byte for byte what it is told."""
    running: list[asyncio.Task[Any] | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(asyncio.current_task())
        with suppress(OSError, EOFError):  # the client goes when it has heard enough
            await handler(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    await asyncio.gather(*(task for task in running if task))


def says(*parts: bytes, then: asyncio.Event | None = None) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
        await writer.drain()
        if then is not None:
            await then.wait()

    return handle


def leads_to(*answers: Sequence[str]) -> outbound.Resolve:
    """A resolver whose every next answer is the next one here, and the last one again."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def got(made: Outbound, url: str, *, max_bytes: int = 1000, timeout_seconds: float = 20, **given: Any) -> bytes:
    async with made.stream(url, max_bytes=max_bytes, timeout_seconds=timeout_seconds, **given) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def refused(call: Awaitable[Any]) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        await call
    return caught.value


@pytest.fixture
async def site() -> AsyncIterator[tuple[Site, str]]:
    made = Site()
    async with served(made) as (host, port):
        yield made, f"http://{host}:{port}"


async def test_bytes_come_by_our_own_name_and_uncompressed(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/a b"] = 200, {"set-cookie": "a=b"}, b"bytes"

    async with client() as outbound:
        first = await got(outbound, base + "/a%20b?X-Signature=a%2Fb")
        await got(outbound, base + "/a%20b")

    assert first == b"bytes"
    method, _, headers = made.asked[0]
    assert (method, headers["host"], headers["accept-encoding"]) == ("GET", base.removeprefix("http://"), "identity")
    assert headers["user-agent"].startswith("tunesmith/")
    assert "cookie" not in made.asked[1][2]


async def test_post_sends_its_bytes_and_answers_whatever_was_answered(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/hook"] = 503, {"Retry-After": "7"}, b"x" * 10_000

    async with client() as outbound:
        answer = await outbound.post(base + "/hook", content=b"{}", headers={"webhook-id": "1"}, timeout_seconds=20)

    assert (answer.status, answer.headers["retry-after"], answer.body) == (503, "7", b"x" * 4096)
    assert (made.asked[0][0], made.asked[0][2]["webhook-id"], made.bodies) == ("POST", "1", [b"{}"])


async def test_post_follows_no_redirect(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/hook"] = 307, {"location": base + "/elsewhere"}, b""

    async with client() as outbound:
        answer = await outbound.post(base + "/hook", content=b"", headers={}, timeout_seconds=20)

    assert answer.status == 307
    assert [path for _, path, _ in made.asked] == ["/hook"]


async def test_proxies_of_the_environment_are_not_used(site: tuple[Site, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, base = site
    made.answers["/"] = 200, {}, b"direct"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async with client() as outbound:
        assert await got(outbound, base + "/") == b"direct"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "URL_NOT_ALLOWED"),
        ("gopher://example.com/1", "URL_NOT_ALLOWED"),
        ("ftp://example.com/", "URL_NOT_ALLOWED"),
        ("//example.com/", "URL_NOT_ALLOWED"),
        ("example.com", "URL_NOT_ALLOWED"),
        ("", "URL_NOT_ALLOWED"),
        ("http:///path", "URL_NOT_ALLOWED"),
        ("http://user@example.com/", "URL_NOT_ALLOWED"),
        ("http://user:secret@example.com/", "URL_NOT_ALLOWED"),
        ("http://example.com\\@127.0.0.1/", "URL_NOT_ALLOWED"),
        ("http://example.com#@127.0.0.1\\", "URL_NOT_ALLOWED"),
        ("http://exa mple.com/", "URL_NOT_ALLOWED"),
        ("http://example.com/\r\nX-Injected: 1", "URL_NOT_ALLOWED"),
        ("http://example.com/\u2028", "URL_NOT_ALLOWED"),
        ("http://example.com:25/", "URL_NOT_ALLOWED"),
        ("http://example.com:0/", "URL_NOT_ALLOWED"),
        ("http://example.com:99999/", "URL_NOT_ALLOWED"),
        ("http://example.com:port/", "URL_NOT_ALLOWED"),
        ("http://%31%32%37.0.0.1/", "URL_NOT_ALLOWED"),
        ("http://[fe80::1%25eth0]/", "URL_NOT_ALLOWED"),
        ("http://.com/", "URL_NOT_ALLOWED"),
        ("http://a..b/", "URL_NOT_ALLOWED"),
        ("http://./", "URL_NOT_ALLOWED"),
        (f"http://{'a' * 64}.com/", "URL_NOT_ALLOWED"),
        (f"http://{'a.' * 130}com/", "URL_NOT_ALLOWED"),
        ("http://[::1/", "URL_NOT_ALLOWED"),
        ("http://2130706433/", "URL_NOT_ALLOWED"),
        ("http://0x7f000001/", "URL_NOT_ALLOWED"),
        ("http://0177.0.0.1/", "URL_NOT_ALLOWED"),
        ("http://127.1/", "URL_NOT_ALLOWED"),
        ("http://127.0.0.1./", "URL_NOT_ALLOWED"),
        ("http://①②⑦.⓪.⓪.①/", "URL_NOT_ALLOWED"),
        ("http://ｌｏｃａｌｈｏｓｔ/", "URL_NOT_ALLOWED"),
        ("http://xn--a/", "URL_NOT_ALLOWED"),
        ("http://example.com/" + "a" * 5000, "URL_NOT_ALLOWED"),
        ("http://127.0.0.1/", "ADDRESS_NOT_PUBLIC"),
        ("http://127。0。0。1/", "ADDRESS_NOT_PUBLIC"),
        ("http://0.0.0.0/", "ADDRESS_NOT_PUBLIC"),
        ("http://169.254.169.254/latest/meta-data/", "ADDRESS_NOT_PUBLIC"),
        ("http://[::1]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[::]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[::ffff:127.0.0.1]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[::ffff:7f00:1]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[64:ff9b::10.0.0.1]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[2002:7f00:1::]/", "ADDRESS_NOT_PUBLIC"),
        ("http://[fd00:ec2::254]/", "ADDRESS_NOT_PUBLIC"),
    ],
)
async def test_hostile_url_is_refused_without_any_traffic(url: str, reason: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise AssertionError("nothing is asked")

    async with client(allow=(), resolve=resolve) as outbound:
        told = [
            await refused(got(outbound, url)),
            await refused(outbound.post(url, content=b"", headers={}, timeout_seconds=20)),
        ]
        faults = outbound.faults(url)

    assert faults[0].reason == reason
    assert {(type(one), one.reason) for one in told} == {(OutboundRefused, reason)}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png?X=1#f",
        "http://bücher.example:8080/",
        f"http://{'a' * 63}.example./",
        f"http://{'a.' * 125}com./",
        "https://8.8.8.8/",
        "http://[2606:4700::1]:443/",
    ],
)
async def test_good_url_passes_the_check(url: str) -> None:
    async with client(allow=()) as outbound:
        assert outbound.faults(url) == []


@pytest.mark.parametrize(
    ("url", "faults"),
    [
        (
            "ftp://u:p@127.0.0.1:22/x",
            [
                ("URL_NOT_ALLOWED", "its scheme is 'ftp'; wanted http or https"),
                ("URL_NOT_ALLOWED", "it holds a user or a password; wanted a URL without"),
                ("URL_NOT_ALLOWED", "its port is 22; wanted 80, 443, or 1024 to 65535"),
                ("ADDRESS_NOT_PUBLIC", "its host 127.0.0.1 is not a public address"),
            ],
        ),
        (
            "http://10.0.0.1:22/",
            [
                ("URL_NOT_ALLOWED", "its port is 22; wanted 80, 443, or 1024 to 65535"),
                ("ADDRESS_NOT_PUBLIC", "its host 10.0.0.1 is not a public address"),
            ],
        ),
        (
            "http://" + "a b" * 2000,
            [
                ("URL_NOT_ALLOWED", "it has 6007 characters; at most 4096 are allowed"),
                ("URL_NOT_ALLOWED", "it holds a space, a backslash or a control character"),
            ],
        ),
        (
            "http://[2606:4700::1%25eth0]/",
            [
                (
                    "URL_NOT_ALLOWED",
                    "its host '2606:4700::1%25eth0' names a zone of some machine's own network; wanted an address"
                    " without '%'",
                )
            ],
        ),
        ("http://a..b/", [("URL_NOT_ALLOWED", "its host 'a..b' has nothing before, or between, two dots")]),
        (
            f"http://{'a' * 64}.com/",
            [("URL_NOT_ALLOWED", "its host has 64 characters between two dots; at most 63 are allowed")],
        ),
        (
            f"http://{'a.' * 125}coms./",
            [("URL_NOT_ALLOWED", "its host has 254 characters; at most 253 are allowed")],
        ),
    ],
)
async def test_all_faults_of_a_url_are_told_at_once(url: str, faults: list[tuple[str, str]]) -> None:
    async with client(allow=()) as outbound:
        assert [(one.reason, one.sentence) for one in outbound.faults(url)] == faults


async def test_command_is_told_all_that_is_wrong_with_the_text_of_a_url() -> None:
    with pytest.raises(OutboundRefused, match=r"its scheme is 'ftp'.*; it holds a user.*; its port is 22"):
        outbound.askable("ftp://u:p@127.0.0.1:22/x")


@pytest.mark.parametrize("host", ["localhost", "localhost.", "a.localhost"])
async def test_name_of_this_host_is_not_reached(host: str, site: tuple[Site, str]) -> None:
    made, base = site
    port = base.rpartition(":")[2]

    async with client(allow=()) as outbound:
        told = await refused(got(outbound, f"http://{host}:{port}/"))

    assert told.reason == "UNREACHABLE"
    assert made.asked == []


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%2"]])
async def test_name_is_not_reached_where_any_of_its_addresses_is_private(
    addresses: list[str], site: tuple[Site, str]
) -> None:
    made, base = site
    port = base.rpartition(":")[2]

    async with client(allow=(), resolve=leads_to(addresses)) as outbound:
        with capture_logs() as lines:
            told = await refused(got(outbound, f"http://shop.example:{port}/secret?token=1"))

    assert (type(told), told.reason, made.asked) == (OutboundNowhere, "UNREACHABLE", [])
    assert [line["action"] for line in lines] == ["outbound_refused"]
    assert "token" not in str(lines)


async def test_public_address_of_this_very_host_is_not_reached(
    site: tuple[Site, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, base = site
    monkeypatch.setattr(outbound, "is_public", lambda address: True)  # as if the host's were a public one

    async with client(allow=(), resolve=leads_to(["127.0.0.1"])) as guarded:
        by_name = await refused(got(guarded, f"http://shop.example:{base.rpartition(':')[2]}/"))
        by_address = await refused(got(guarded, base + "/"))

    assert (by_name.reason, by_address.reason, made.asked) == ("UNREACHABLE", "ADDRESS_NOT_PUBLIC", [])


async def test_denied_network_is_not_reached_though_it_is_public_or_allowed(site: tuple[Site, str]) -> None:
    made, base = site
    denied = {"allow": LOOPBACK, "deny": [ip_network("127.0.0.1"), ip_network("1.1.1.0/24")]}

    async with client(**denied, resolve=leads_to(["::ffff:127.0.0.1"])) as guarded:
        by_name = await refused(got(guarded, f"http://shop.example:{base.rpartition(':')[2]}/"))
        by_address = await refused(got(guarded, base + "/"))
        [fault] = guarded.faults("https://1.1.1.1/")
        assert fault.sentence == "its host 1.1.1.1 is not a public address"
        assert guarded.faults("https://1.1.2.1/") == []

    assert (by_name.reason, by_address.reason, made.asked) == ("UNREACHABLE", "ADDRESS_NOT_PUBLIC", [])


async def test_names_that_nobody_resolves_hold_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Semaphore(0), threading.Event()

    def silent(*_: object, **__: object) -> Any:
        asked.release()
        answers.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    async with client() as outbound:
        looked_up = [asyncio.create_task(refused(got(outbound, f"http://n{number}.test/"))) for number in range(100)]
        try:
            await asyncio.to_thread(asked.acquire)
            async with asyncio.timeout(5):
                await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(100)))
        finally:
            answers.set()
        errors = await asyncio.gather(*looked_up)

    assert {error.reason for error in errors} == {"UNREACHABLE"}


async def test_name_is_resolved_once_and_what_was_checked_is_reached(
    site: tuple[Site, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, base = site
    made.answers["/"] = 200, {}, b"the checked one"
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async def nowhere(*_: Any, **__: Any) -> Any:
        raise AssertionError("a name went as far as the socket")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nowhere)
    async with client(resolve=rebinding) as outbound:
        first = await got(outbound, f"http://rebinding.example:{base.rpartition(':')[2]}/")
        second = await refused(got(outbound, f"http://rebinding.example:{base.rpartition(':')[2]}/"))

    assert (first, second.reason) == (b"the checked one", "UNREACHABLE")
    assert asked == ["rebinding.example"] * 2
    assert made.asked[0][2]["host"].startswith("rebinding.example:")


async def test_missing_name_private_address_and_closed_port_are_told_alike() -> None:
    async def missing(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with raw(says()) as base:
        port = base.rstrip("/").rpartition(":")[2]
    url = f"http://shop.example:{port}/"

    told = []
    for resolve, allow in ((missing, ()), (leads_to(["10.0.0.1"]), ()), (leads_to(["127.0.0.1"]), LOOPBACK)):
        async with client(resolve=resolve, allow=allow) as outbound:
            told.append(await refused(got(outbound, url)))

    assert {(one.reason, one.sentence) for one in told} == {
        ("UNREACHABLE", "shop.example cannot be reached at a public address")
    }
    # Whether a name exists within the network is not told by what follows either.
    assert [type(one) for one in told] == [OutboundNowhere, OutboundNowhere, OutboundFailed]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), OutboundNowhere),
        (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), OutboundNowhere),
        (UnicodeError("label empty or too long"), OutboundNowhere),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), OutboundFailed),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"), OutboundFailed),
        (TimeoutError(), OutboundFailed),
    ],
    ids=str,
)
async def test_resolver_that_fails_is_no_name_that_does_not_exist(fault: Exception, kind: type[OutboundFailed]) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise fault

    async with client(resolve=resolve) as outbound:
        told = await refused(got(outbound, "http://shop.example/"))

    assert (type(told), told.reason) == (kind, "UNREACHABLE")


async def test_next_address_is_tried_where_the_first_does_not_answer(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/"] = 200, {}, b"second"
    port = base.rpartition(":")[2]

    async with client(resolve=leads_to(["127.0.0.2", "127.0.0.1"])) as outbound:
        assert await got(outbound, f"http://shop.example:{port}/") == b"second"


async def test_redirects_are_followed_and_each_is_checked(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/1"] = 302, {"location": "/2"}, b"on"
    made.answers["/2"] = 307, {"location": base + "/3"}, b""
    made.answers["/3"] = 200, {}, b"here"
    made.answers["/inside"] = 302, {"location": "http://10.0.0.1/"}, b""
    made.answers["/metadata"] = 301, {"location": "//[::ffff:169.254.169.254]/latest"}, b""
    made.answers["/file"] = 302, {"location": "file:///etc/passwd"}, b""
    made.answers["/port"] = 302, {"location": "gopher://example.com:25/"}, b""
    made.answers["/name"] = 302, {"location": "http://inside.example/"}, b""
    made.answers["/broken"] = 302, {"location": "http://[::1"}, b""

    async with client(resolve=leads_to(["192.168.0.1"])) as outbound:
        followed = await got(outbound, base + "/1")
        paths = ("/inside", "/metadata", "/file", "/port", "/name", "/broken")
        told = {path: (await refused(got(outbound, base + path))).reason for path in paths}

    assert followed == b"here"
    assert told == {
        "/inside": "ADDRESS_NOT_PUBLIC",
        "/metadata": "ADDRESS_NOT_PUBLIC",
        "/file": "URL_NOT_ALLOWED",
        "/port": "URL_NOT_ALLOWED",
        "/name": "UNREACHABLE",
        "/broken": "URL_NOT_ALLOWED",
    }


async def test_endless_redirects_end(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/"] = 302, {"location": "/"}, b""

    async with client() as outbound:
        told = await refused(got(outbound, base + "/"))

    assert (type(told), told.reason, len(made.asked)) == (OutboundRefused, "TOO_MANY_REDIRECTS", 6)


async def test_answer_past_the_limit_is_cut_off_announced_or_not(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/announced"] = 200, {"content-length": "1001"}, b"x" * 1001
    made.answers["/just"] = 200, {"content-length": "1000"}, b"x" * 1000
    endless = says(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100_000)

    async with client() as outbound, raw(endless) as unannounced:
        told = [await refused(got(outbound, url)) for url in (base + "/announced", unannounced)]
        just = await got(outbound, base + "/just")

    assert [(type(one), one.reason) for one in told] == [(OutboundRefused, "TOO_LARGE")] * 2
    assert len(just) == 1000


async def test_compressed_answer_is_refused(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/"] = 200, {"content-encoding": "gzip"}, b"\x1f\x8b"

    async with client() as outbound:
        told = await refused(got(outbound, base + "/"))

    assert (type(told), told.reason) == (OutboundRefused, "ENCODING_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, OutboundRefused),
        (403, OutboundRefused),
        (304, OutboundRefused),
        (429, OutboundFailed),
        (503, OutboundFailed),
    ],
)
async def test_status_says_whether_to_ask_again(status: int, kind: type, site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/"] = status, {}, b""

    async with client() as outbound:
        told = await refused(got(outbound, base + "/?token=secret"))

    assert (type(told), told.reason) == (kind, "STATUS_NOT_OK")
    assert told.sentence == f"127.0.0.1 answered {status}"


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"],
    ids=["nothing", "another protocol", "half"],
)
async def test_answer_that_breaks_off_or_is_none_may_come_another_time(answer: bytes) -> None:
    async with client() as outbound, raw(says(answer)) as url:
        told = await refused(got(outbound, url))

    assert (type(told), told.reason) == (OutboundFailed, "BROKEN_OFF")
    assert "SSH" not in told.sentence


async def test_server_that_says_a_little_now_and_then_ends_with_the_whole_time() -> None:
    over = asyncio.Event()

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set() and not writer.is_closing():
            writer.write(b".")
            await asyncio.sleep(0.01)

    async with client() as outbound, raw(drips) as url:
        told = await refused(got(outbound, url, max_bytes=10**9, timeout_seconds=0.3))
        posted = await refused(outbound.post(url, content=b"", headers={}, timeout_seconds=0.3))
        over.set()

    assert [(type(one), one.reason) for one in (told, posted)] == [(OutboundFailed, "TIMED_OUT")] * 2


async def test_silent_server_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "IDLE", 0.2)
    over = asyncio.Event()

    async with client() as made, raw(says(b"HTTP/1.1 200 OK\r\n\r\nhello", then=over)) as url:
        told = await refused(got(made, url))
        over.set()

    assert (type(told), told.reason) == (OutboundFailed, "TIMED_OUT")


async def test_what_the_block_raises_passes(site: tuple[Site, str]) -> None:
    made, base = site
    made.answers["/"] = 200, {}, b"bytes"

    async with client() as outbound:
        with pytest.raises(TimeoutError, match="the disk"):
            async with outbound.stream(base + "/", max_bytes=10, timeout_seconds=20):
                raise TimeoutError("the disk")


async def test_certificate_is_checked_by_name_though_the_address_is_pinned(tmp_path: Path) -> None:
    made = Site()
    made.answers["/"] = 200, {}, b"secure"

    async with secure(made, tmp_path, "shop.example") as (port, trusted):
        async with client(resolve=leads_to(["127.0.0.1"]), tls=trusted) as outbound:
            right = await got(outbound, f"https://shop.example:{port}/")
            wrong = await refused(got(outbound, f"https://other.example:{port}/"))
        async with client(resolve=leads_to(["127.0.0.1"]), tls=None) as outbound:
            unknown = await refused(got(outbound, f"https://shop.example:{port}/"))

    assert right == b"secure"
    assert [(type(one), one.reason) for one in (wrong, unknown)] == [(OutboundFailed, "TLS_FAILED")] * 2
    assert len(made.asked) == 1


async def test_secret_goes_over_https_to_its_own_origin_alone(tmp_path: Path, site: tuple[Site, str]) -> None:
    plain, base = site
    made = Site()
    secret = {"Authorization": "Bearer hf_secret"}

    async with secure(made, tmp_path, "hub.example", "cdn.example") as (port, trusted):
        made.answers["/same"] = 302, {"location": "/there"}, b""
        made.answers["/other"] = 302, {"location": f"https://cdn.example:{port}/there"}, b""
        made.answers["/plain"] = 302, {"location": base + "/there"}, b""
        made.answers["/there"] = 200, {}, b"bytes"
        async with client(resolve=leads_to(["127.0.0.1"]), tls=trusted) as outbound:
            for path in ("/same", "/other"):
                assert await got(outbound, f"https://hub.example:{port}{path}", secret_headers=secret) == b"bytes"
            told = [
                await refused(got(outbound, f"https://hub.example:{port}/plain", secret_headers=secret)),
                await refused(got(outbound, f"https://hub.example:{port}/plain")),
                await refused(got(outbound, base + "/there", secret_headers=secret)),
            ]

    bearers = [headers.get("authorization") for _, path, headers in made.asked if path == "/there"]
    assert bearers == ["Bearer hf_secret", None]
    assert [one.reason for one in told] == ["URL_NOT_ALLOWED"] * 3
    assert plain.asked == []


async def test_nothing_of_a_signed_url_is_logged(site: tuple[Site, str], caplog: pytest.LogCaptureFixture) -> None:
    made, base = site
    made.answers["/"] = 302, {"location": "/there?X-Amz-Signature=secret"}, b""
    made.answers["/there"] = 404, {}, b""
    caplog.set_level("DEBUG")

    async with client() as outbound:
        with capture_logs() as lines:
            told = await refused(got(outbound, base + "/?token=secret", headers={"X-Token": "secret"}))

    assert told.reason == "STATUS_NOT_OK"
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn")]
    assert "secret" not in str(ours) + str(lines) + str(told)

"""Somebody's web site on loopback, plain or over TLS: what it answers is said by path, and it remembers what it was
asked."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.servers.uvicorn import served

Answer = tuple[int, dict[str, str], bytes]
LIMIT = 60.0  # seconds that a busy machine may take for what one should


class Site:
    """An ASGI app."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers of each request."""
        self.bodies: list[bytes] = []
        """Of each request."""
        self.answers: dict[str, Answer | list[Answer]] = {}
        """By path; of a list one after the other, the last again and again. 404 elsewhere."""
        self.held: dict[str, asyncio.Event] = {}
        """By path: it answers only once that is set, or the caller has gone."""
        self.arrived = asyncio.Condition()
        """Told of each request."""
        self.left: list[str] = []
        """Paths whose caller went before the answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        async with self.arrived:
            self.asked.append((scope["method"], path, headers))
            self.bodies.append(body)
            self.arrived.notify_all()
        if path in self.held and not await self._is_set(self.held[path], receive):
            async with self.arrived:
                self.left.append(path)
                self.arrived.notify_all()
            return
        status, told, content = self._answer(path)
        pairs = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content})

    def paths(self) -> list[str]:
        """What was asked for, in its order."""
        return [path for _, path, _ in self.asked]

    async def was_asked(self, path: str, times: int = 1) -> None:
        """Waits until it was."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.paths().count(path) >= times)

    async def was_left(self, path: str) -> None:
        """Waits until a caller that waits for this answer has gone."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: path in self.left)

    async def let(self, path: str) -> None:
        """Answers what was held."""
        self.held[path].set()

    def _answer(self, path: str) -> Answer:
        answer = self.answers.get(path, (404, {}, b""))
        if isinstance(answer, list):
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer

    async def _is_set(self, event: asyncio.Event, receive: Any) -> bool:
        """Whether it is, before the caller goes."""
        waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(receive())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return event.is_set()


@contextmanager
def apart(site: Site) -> Iterator[tuple[str, Callable[[Coroutine[Any, Any, Any]], Any]]]:
    """The site in a thread, for tests without a loop of their own: its URL, and what runs something beside it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def beside(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(LIMIT)

    serving = served(site)
    try:
        host, port = beside(serving.__aenter__())
        try:
            yield f"http://{host}:{port}", beside
        finally:
            beside(serving.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def secure(site: Site, folder: Path, *names: str) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """The site over TLS under those names: its port, and what trusts it."""
    key, public = certificate(folder, *names)
    async with served(site, ssl_keyfile=str(key), ssl_certfile=str(public)) as (_, port):
        yield port, ssl.create_default_context(cafile=str(public))


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A key, and a certificate of those names that its holder signed himself."""
    key, public = folder / "key.pem", folder / "certificate.pem"
    also = ",".join(f"DNS:{name}" for name in names)
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test -addext"
    files = ["-keyout", str(key), "-out", str(public)]
    subprocess.run(["openssl", *asked.split(), f"subjectAltName={also}", *files], check=True, capture_output=True)
    return key, public

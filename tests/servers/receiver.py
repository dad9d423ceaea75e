"""Receives webhooks on loopback and answers as it is told to. Used where their delivery matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from tests.servers.uvicorn import served

Answers = Callable[["Received"], Awaitable[Response]]


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """Of the message."""
        return self.headers["webhook-id"]


async def accept(_: Received) -> Response:
    """Takes everything."""
    return Response(status_code=204)


@dataclass
class Receiver:
    """What came, in its order."""

    url: str = ""
    answer: Answers = accept
    received: list[Received] = field(default_factory=list)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]  # ASGI's
        """The ASGI app."""
        request = Request(scope, receive)
        received = Received(request.url.path, dict(request.headers), await request.body())
        async with self._came:
            self.received.append(received)
            self._came.notify_all()
        response = await self.answer(received)
        await response(scope, receive, send)

    async def have(self, count: int, path: str | None = None) -> list[Received]:
        """Waits until so many have come, at a path or in all; those."""

        def there() -> list[Received]:
            return [each for each in self.received if path in (None, each.path)]

        async with asyncio.timeout(60), self._came:
            await self._came.wait_for(lambda: len(there()) >= count)
        return there()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver at any path of its url."""
    receiver = Receiver()
    async with served(receiver) as (host, port):
        receiver.url = f"http://{host}:{port}"
        yield receiver

"""Asks the gateway for signed URLs, across streams. Called by attempts and uploads, answered by the supervisor."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from trainer.supervisor.leases import Lease, LeaseLost
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

TIMEOUT = 30.0  # seconds; a gateway whose database is away does not answer, and is asked again


@dataclass
class _Asked:
    request: pb.UrlRequest
    answer: asyncio.Future[str]


class UrlRefused(Exception):
    """The gateway gives no URL of the object: it is gone, or is none of the attempt's."""


class Urls:
    """Requests that wait for their answer. `send` puts one on the stream, or does nothing where there is none."""

    def __init__(self, send: Callable[[pb.UrlRequest], None]) -> None:
        self._send = send
        self._asked: dict[int, _Asked] = {}
        self._ids = itertools.count(1)

    async def ask(self, lease: Lease, method: pb.Method.ValueType, name: str) -> str:
        """A signed URL for one object. Waits for as long as there is no gateway.

        Raises:
            LeaseLost: The attempt is no longer ours.
            UrlRefused: It may not touch the object.
        """
        wanted = pb.ObjectName(method=method, name=name)
        request_id = next(self._ids)
        request = pb.UrlRequest(request_id=request_id, lease=lease.message(), objects=[wanted])
        asked = self._asked[request_id] = _Asked(request, asyncio.get_running_loop().create_future())
        try:
            while True:
                self._send(request)
                done, _ = await asyncio.wait({asked.answer}, timeout=TIMEOUT)
                if done:
                    return asked.answer.result()
        finally:
            del self._asked[request_id]
            asked.answer.cancel()

    def ask_again(self) -> None:
        """There is a new stream: what was asked on the old one may have been lost."""
        for asked in self._asked.values():
            self._send(asked.request)

    def answered(self, urls: pb.Urls) -> None:
        """The gateway's answer."""
        asked = self._asked.get(urls.request_id)
        if asked is None or asked.answer.done():
            return
        if urls.urls:
            asked.answer.set_result(urls.urls[0].url)
        else:
            asked.answer.set_exception(UrlRefused(f"the gateway gives no URL of {asked.request.objects[0].name}"))

    def lost(self, lease: Lease) -> None:
        """The lease is no longer ours."""
        for asked in self._asked.values():
            if Lease.of(asked.request.lease) == lease and not asked.answer.done():
                asked.answer.set_exception(LeaseLost(str(lease)))

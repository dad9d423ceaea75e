"""Keeps a stream open to one of the gateways: which one, over what channel, and when again. Called by the supervisor;
knows nothing of what is said."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import structlog

from trainer.supervisor.backoff import Backoff
from trainer.supervisor.config import Settings
from trainer.supervisor.session import End, Session

log = structlog.get_logger()

STEADY = 30.0  # seconds of a stream after which its end counts as the first again
TRIES = 6  # in the time of a lease at the least: each of several gateways gets one before the lease ends

OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

#: The gateway will not have us, and calling again mends nothing.
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Refused(Exception):
    """No gateway will have this trainer; the message says why."""


class DuplicateTrainer(Exception):
    """Another process of this trainer_id is at work."""


class Connection:
    """The way to the gateways.

    Args:
        settings: Addresses, token, TLS.
        session: Makes a session for a new stream.
        holds_work: Whether any attempt is held: then not even a refusal ends the process, for a person may mend it
            before the lease ends, and training that is under way goes on.
        lease_seconds: Length of a lease; 0 before a gateway has said it.
    """

    def __init__(
        self,
        settings: Settings,
        session: Callable[[], Session],
        holds_work: Callable[[], bool],
        lease_seconds: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._session = session
        self._holds_work = holds_work
        self._lease_seconds = lease_seconds
        self._leaving = False

    def leave(self) -> None:
        """The next end of a stream is the last, unless there is still something to give back."""
        self._leaving = True

    async def run(self) -> None:
        """Connects again and again; returns after `leave`, once nothing is held.

        Raises:
            Refused: Token or configuration is wrong.
            DuplicateTrainer: This process has been replaced.
        """
        backoff = Backoff(first=0.5, most=10.0)
        addresses = itertools.cycle(random.sample(self._settings.gateways, len(self._settings.gateways)))
        while not self._is_done():
            address = next(addresses)
            started = time.monotonic()
            async with self._channel(address) as channel:
                end = await self._session().run(channel)
            if self._is_done():
                return
            log.warning("The stream has ended", gateway=address, code=end.code and end.code.name, details=end.details)
            self._judge(end)
            if end.welcomed and (end.redirected or time.monotonic() - started > STEADY):
                backoff.reset()
            await asyncio.sleep(backoff.next(self._longest_wait()) if not _is_fault_of_ours(end) else _long_wait())

    def _is_done(self) -> bool:
        return self._leaving and not self._holds_work()

    def _judge(self, end: End) -> None:
        if end.code == grpc.StatusCode.ALREADY_EXISTS:
            raise DuplicateTrainer(end.details)
        if end.code in REFUSALS and not self._holds_work():
            raise Refused(f"{end.code.name}: {end.details}")

    def _longest_wait(self) -> float:
        """However many streams have failed, there are some tries left before a lease ends."""
        return self._lease_seconds() / TRIES if self._lease_seconds() > 0 else math.inf

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._settings.is_plaintext(address):
            return grpc.aio.insecure_channel(address, options=OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_bytes(self._settings.tls_ca),
            private_key=_bytes(self._settings.tls_key),
            certificate_chain=_bytes(self._settings.tls_certificate),
        )
        return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


def _long_wait() -> float:
    return random.uniform(10.0, 30.0)  # noqa: S311  (jitter, no secret)


def _is_fault_of_ours(end: End) -> bool:
    """Whether the gateway would only answer the same."""
    return end.code in (*REFUSALS, grpc.StatusCode.INVALID_ARGUMENT)


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None

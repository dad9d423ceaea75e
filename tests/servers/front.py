"""The gateway's two front doors on a fake service: a real gRPC server with our interceptors, and the HTTP app on it.

Used by the tests of gateway/http and gateway/interceptors; no store, no database.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf.empty_pb2 import Empty
from starlette.applications import Starlette

from gateway import interceptors
from gateway.http.app import CHANNEL_OPTIONS, build
from gateway.http.loopback import Loopback
from gateway.quotas import Quotas
from store.keys import Caller
from tunesmith.v1 import asset_service_pb2, tune_pb2, tune_service_pb2
from tunesmith.v1.tune_service_pb2_grpc import TuneServiceServicer, add_TuneServiceServicer_to_server

SERVICES = [
    tune_service_pb2.DESCRIPTOR.services_by_name["TuneService"],
    asset_service_pb2.DESCRIPTOR.services_by_name["AssetService"],
]
CALLER = Caller("11111111-1111-1111-1111-111111111111", "me", "key_1", frozenset({"*"}), False)
KEYS = {
    "ts_all": CALLER,
    "ts_reader": Caller(CALLER.tenant_id, "me", "key_2", frozenset({"tune:read"}), False),
    "ts_slow": Caller("22222222-2222-2222-2222-222222222222", "slow", "key_3", frozenset({"*"}), False, 0.01),
    "ts_crawls": Caller("33333333-3333-3333-3333-333333333333", "crawls", "key_4", frozenset({"*"}), False, 1e-320),
}


@dataclass
class FakeTunes(TuneServiceServicer):
    """Answers with what it was asked, or fails as it was told."""

    fails: Exception | None = None
    asked: list[Any] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    traces: list[str | None] = field(default_factory=list)
    events: list[tune_pb2.TuneEvent | Exception] = field(default_factory=list)
    pause: asyncio.Event | None = None
    """Set: a watch waits for it before its first event."""
    pause_after: asyncio.Event | None = None
    """Set: a watch waits for it after its last event."""
    sent: int = 0
    """Events that watches have sent."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a watch has ended, however it ended."""

    def _ask(self, request: Any) -> None:
        self.asked.append(request)
        self.callers.append(interceptors.caller().key_id)
        self.traces.append(interceptors.traceparent())
        if self.fails is not None:
            raise self.fails

    async def CreateTune(self, request: Any, context: Any) -> tune_pb2.Tune:  # noqa: N802 - gRPC's name
        self._ask(request)
        await context.send_initial_metadata((("idempotent-replay", "true"),))
        tune = tune_pb2.Tune(id="tune_1", name=request.name, details=request.details, metadata=request.metadata)
        tune.status = tune_pb2.TUNE_STATUS_PENDING
        return tune

    async def GetTune(self, request: Any, context: Any) -> tune_pb2.Tune:  # noqa: N802
        self._ask(request)
        if request.id == "aborts":
            await context.abort(grpc.StatusCode.ABORTED, "On purpose.")
        if request.id == "hangs":
            await asyncio.Event().wait()
        return tune_pb2.Tune(id=request.id)

    async def CancelTune(self, request: Any, context: Any) -> tune_pb2.Tune:  # noqa: N802
        self._ask(request)
        return tune_pb2.Tune(id=request.id)

    async def DeleteTune(self, request: Any, context: Any) -> Empty:  # noqa: N802
        self._ask(request)
        return Empty()

    async def ListTunes(self, request: Any, context: Any) -> tune_service_pb2.ListTunesResponse:  # noqa: N802
        self._ask(request)
        return tune_service_pb2.ListTunesResponse(total=2**53 + 1)

    async def ListTuneEvents(self, request: Any, context: Any) -> tune_service_pb2.ListTuneEventsResponse:  # noqa: N802
        self._ask(request)
        return tune_service_pb2.ListTuneEventsResponse()

    async def WatchTune(self, request: Any, context: Any) -> AsyncIterator[tune_pb2.TuneEvent]:  # noqa: N802
        self._ask(request)
        try:
            if self.pause is not None:
                await self.pause.wait()
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                self.sent += 1
                yield event
            if self.pause_after is not None:
                await self.pause_after.wait()
        finally:
            self.left.set()


@dataclass
class Front:
    """What a test talks to."""

    tunes: FakeTunes
    app: Starlette
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    rpcs: list[tuple[str, str]]
    """(method, code) of each rpc that has ended."""
    requests: list[tuple[str, str, int]]
    """(route, verb, status) of each HTTP request that was answered."""
    answered: asyncio.Event
    """Set once an HTTP request was answered."""


@asynccontextmanager
async def front(*, socket: bool = False, quotas: Quotas | None = None, **options: Any) -> AsyncIterator[Front]:
    """Starts both doors; `options` go to gateway.http.app.build.

    The HTTP app calls the servicers through a Loopback; with `socket`, over the gRPC server's socket.
    """
    tunes = FakeTunes()
    rpcs: list[tuple[str, str]] = []
    requests: list[tuple[str, str, int]] = []
    answered = asyncio.Event()

    def record(route: str, verb: str, status: int, seconds: float) -> None:
        requests.append((route, verb, status))
        answered.set()

    async def authenticate(secret: str) -> Caller | None:
        return KEYS.get(secret)

    async def authenticate_trainer(secret: str) -> str | None:
        return "trainer-1" if secret == "tt_1" else None

    chain = interceptors.chain(
        authenticate=authenticate,
        authenticate_trainer=authenticate_trainer,
        record=lambda method, code, seconds: rpcs.append((method.rpartition("/")[2], code)),
        quotas=quotas,
    )
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 'grpc'}"
        server = grpc.aio.server(interceptors=chain)
        add_TuneServiceServicer_to_server(tunes, server)
        server.add_insecure_port(address)
        await server.start()
        loopback: Any = Loopback(chain)
        add_TuneServiceServicer_to_server(tunes, loopback)
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            app = build(
                channel if socket else loopback,
                SERVICES,
                record=record,
                **options,
            )
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            key = {"authorization": "Bearer ts_all"}
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=key) as client:
                yield Front(tunes, app, client, channel, rpcs, requests, answered)
        await server.stop(0)


def tune_request(**changes: Any) -> dict[str, Any]:
    """A body that CreateTune accepts; a change to None leaves the key out of `details`."""
    details = {
        "tune_type": "lora_tune",
        "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes", "engine": "image/stable-diffusion-v1-5"},
        "files": [{"file_id": "asset_1", "caption": "a red star"}],
        "steps": 10,
        "trigger_words": ["sks"],
    }
    details |= changes
    return {"name": "stars", "details": {key: value for key, value in details.items() if value is not None}}

"""How soon a gateway acts on what came through another: two processes on one PostgreSQL, callers on the one, a trainer
on the other. The trainer is a stream and no more, so that nothing but the service is measured."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from benchmarks.basics.spread import spread
from tests.servers.gateway import Gateway
from tests.servers.photographs import photographs
from tests.servers.postgres import PostgresServer
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from tunesmith.v1 import tune_pb2, tune_service_pb2, tune_service_pb2_grpc

ENGINE = "image/stable-diffusion-v1-5"


def measure(quick: bool) -> dict[str, Any]:
    """Milliseconds from the sending of a request to one gateway to what it brings about at the other."""
    with tempfile.TemporaryDirectory() as name, PostgresServer(durable=True) as postgres:
        folder, url = Path(name), postgres.url_of(postgres.create_database())
        shared = {"TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri()}
        with Gateway(url, folder / "a", shared) as a, Gateway(url, folder / "b", shared) as b:
            with a.client() as client:
                file_id = client.upload(photographs(folder)[0])
            return asyncio.run(_measured(a, b, file_id, 10 if quick else 150))


async def _measured(a: Gateway, b: Gateway, file_id: str, tunes: int) -> dict[str, Any]:
    seen: dict[str, list[float]] = {"create_to_assign_ms": [], "event_to_watcher_ms": [], "cancel_to_cancel_ms": []}
    async with (
        grpc.aio.insecure_channel(a.ready["grpc"]) as to_a,
        grpc.aio.insecure_channel(b.ready["grpc"]) as to_b,
    ):
        caller = _Caller(to_a, a.api_key, file_id)
        trainer = _Trainer(to_b, b.trainer_token)
        await trainer.say(hello=trainer.hello())
        await trainer.hear("welcome")
        for number in range(tunes + 1):
            for name, milliseconds in (await _one_tune(caller, trainer, f"tune-{number}")).items():
                if number > 0:  # the first one finds everything cold
                    seen[name].append(milliseconds)
    return {name: spread(values, 1) for name, values in seen.items()}


async def _one_tune(caller: _Caller, trainer: _Trainer, name: str) -> dict[str, float]:
    started = time.perf_counter()
    _, (assign, assigned) = await asyncio.gather(caller.create(name), trainer.hear("assign"))
    lease = assign.lease
    await trainer.say(accepted=pb.Accepted(lease=lease))
    events = caller.watch(lease.tune_id)
    await _until(events, lambda event: event.status_changed.status == tune_pb2.TUNE_STATUS_RUNNING)

    reported = time.perf_counter()
    warning = pb.Warning(reason="BENCHMARK", details=hashlib.sha256(name.encode()).hexdigest())
    await trainer.say(event=pb.Event(lease=lease, report_seq=1, warning=warning))
    watched = await _until(events, lambda event: event.HasField("warning"))

    asked = time.perf_counter()
    _, (_, cancelled) = await asyncio.gather(caller.cancel(lease.tune_id), trainer.hear("cancel"))
    await trainer.say(cancel_observed=pb.CancelObserved(lease=lease, report_seq=2))
    await _until(events, lambda event: event.status_changed.status == tune_pb2.TUNE_STATUS_CANCELLED)
    return {
        "create_to_assign_ms": 1000 * (assigned - started),
        "event_to_watcher_ms": 1000 * (watched - reported),
        "cancel_to_cancel_ms": 1000 * (cancelled - asked),
    }


async def _until(events: AsyncIterator[Any], is_it: Callable[[Any], bool]) -> float:
    """When the event was heard."""
    async for event in events:
        if is_it(event.event):
            return time.perf_counter()
    raise RuntimeError("the watch has ended before its time")


class _Caller:
    """Of one gateway."""

    def __init__(self, channel: grpc.aio.Channel, key: str, file_id: str) -> None:
        self._stub: Any = tune_service_pb2_grpc.TuneServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._file_id = file_id

    async def create(self, name: str) -> None:
        lora = tune_pb2.LoraTune(steps=20, trigger_words=["sks"])
        lora.files.add(file_id=self._file_id)
        lora.base_checkpoint.checkpoint_id = "tunesmith:tiny-shapes"
        request = tune_service_pb2.CreateTuneRequest(name=name, details=tune_pb2.TuneDetails(lora_tune=lora))
        await self._stub.CreateTune(request, metadata=self._metadata)

    def watch(self, tune_id: str) -> AsyncIterator[Any]:
        request = tune_service_pb2.WatchTuneRequest(id=tune_id)
        events: AsyncIterator[Any] = aiter(self._stub.WatchTune(request, metadata=self._metadata))
        return events

    async def cancel(self, tune_id: str) -> None:
        await self._stub.CancelTune(tune_service_pb2.CancelTuneRequest(id=tune_id), metadata=self._metadata)


class _Trainer:
    """The stream of one."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        self._call = stub.Connect(metadata=(("authorization", f"Bearer {token}"),))

    def hello(self) -> pb.Hello:
        return pb.Hello(
            trainer_id="trainer-1",
            boot_id="boot-1",
            session_id="session-1",
            engines=[ENGINE],
            slots=1,
            device_memory_bytes=2**36,
        )

    async def say(self, **arm: Any) -> None:  # noqa: ANN401  # one arm of TrainerMessage, by its name
        await self._call.write(pb.TrainerMessage(**arm))

    async def hear(self, arm: str) -> tuple[Any, float]:
        """The next message of that arm, and when it was heard."""
        while True:
            message: pb.GatewayMessage = await self._call.read()
            if message.WhichOneof("message") == arm:
                return getattr(message, arm), time.perf_counter()

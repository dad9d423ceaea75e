"""Gateways' stream ends on a real store, and trainers that say what the test tells them to."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from gateway import interceptors
from gateway.desk import StreamSettings
from gateway.dispatch import Dispatcher
from gateway.status import received
from gateway.stream_metrics import StreamMetrics
from gateway.trainers import TrainerServicer
from store import assets, keys, tunes
from store.database import Database
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from store.states import TuneState
from store.tables import Tune
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

ENGINE = "image/stable-diffusion-v1-5"
LORA = b"the bytes of a lora"
CONNECT = "/tunesmith.trainer.v1.TrainerService/Connect"


class Trainer:
    """A trainer's end of one stream. Beats only when the test says so."""

    def __init__(self, call: Any, hello: pb.Hello) -> None:
        self.call = call
        self.hello = hello
        self.heard: asyncio.Queue[pb.GatewayMessage] = asyncio.Queue()
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self.beats = 0
        self._reading = asyncio.create_task(self._read())

    async def say(self, **arm: Any) -> None:
        await self.call.write(pb.TrainerMessage(**arm))

    async def hear(self, arm: str) -> Any:
        """The next message of that arm; what comes before it is skipped."""
        while True:
            message = await asyncio.wait_for(self.heard.get(), 20)
            if message.WhichOneof("message") == arm:
                return getattr(message, arm)

    async def beat(self, *held: pb.Lease, free_slots: int = 1) -> pb.HeartbeatAck:
        self.beats += 1
        attempts = [pb.HeldAttempt(lease=lease) for lease in held]
        await self.say(heartbeat=pb.Heartbeat(seq=self.beats, free_slots=free_slots, held=attempts))
        ack: pb.HeartbeatAck = await self.hear("heartbeat_ack")
        return ack

    async def take(self) -> pb.Assign:
        """Accepts the next assignment."""
        assign: pb.Assign = await self.hear("assign")
        await self.say(accepted=pb.Accepted(lease=assign.lease))
        return assign

    async def report(self, **arm: Any) -> pb.ReportAck:
        await self.say(**arm)
        ack: pb.ReportAck = await self.hear("report_ack")
        return ack

    async def leave(self) -> None:
        self._reading.cancel()
        self.call.cancel()

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Status and reason with which the gateway ends the stream."""
        return await asyncio.wait_for(self.ended, 20)

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self.heard.put_nowait(message)
            self.ended.set_result((await self.call.code(), ""))
        except grpc.aio.AioRpcError as error:
            self.ended.set_result((error.code(), reason_of(error)))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    return received(error.code(), error.details(), error.trailing_metadata()).reason


class Gateway:
    """The stream end of one gateway."""

    def __init__(self, database: Database, objects: LocalObjects, **settings: Any) -> None:
        self.database = database
        self.registry = CollectorRegistry()
        self.settings = StreamSettings(**{"gateway_id": "gateway-1", "poll_seconds": 0.2, **settings})
        self.dispatcher = Dispatcher(database, objects, self.settings, StreamMetrics(self.registry))

    async def start(self) -> None:
        chain = interceptors.chain(
            authenticate=partial(keys.authenticate, self.database),
            authenticate_trainer=partial(keys.authenticate_trainer, self.database),
        )
        self.server = grpc.aio.server(interceptors=chain, options=[("grpc.so_reuseport", 0)])
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
            TrainerServicer(self.dispatcher, interceptors.trainer_id), self.server
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.running = asyncio.create_task(self.dispatcher.run())

    async def stop(self) -> None:
        await self.server.stop(0)
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


class Stage:
    """A store, gateways on it, trainers."""

    def __init__(self, open_database: Callable[[], Awaitable[Database]], folder: Path) -> None:
        self._open = open_database
        self.signer = Signer("http://gateway", b"a secret of tests")
        self.objects = LocalObjects(folder / "objects", self.signer)
        self.gateways: list[Gateway] = []
        self.trainers: list[Trainer] = []
        self.channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        self.database = await self._open()
        tenant = await keys.create_tenant(self.database, "acme")
        self.tenant = tenant.id
        source = {"builtin": "tiny-shapes"}
        self.checkpoint = await assets.publish(self.database, "tunesmith", "tiny-shapes", ENGINE, source)
        self.tokens = {
            name: await keys.create_trainer_token(self.database, name) for name in ("trainer-1", "trainer-2")
        }

    async def gateway(self, **settings: Any) -> Gateway:
        gateway = Gateway(self.database if not self.gateways else await self._open(), self.objects, **settings)
        await gateway.start()
        self.gateways.append(gateway)
        return gateway

    async def call(self, gateway: Gateway, token: str) -> Any:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
        self.channels.append(channel)
        # Not by the stub: what a trainer writes may also be bytes that are no message.
        connect: Any = channel.stream_stream(CONNECT, serialized, pb.GatewayMessage.FromString)
        return connect(metadata=(("authorization", f"Bearer {token}"),))

    async def trainer(self, gateway: Gateway, name: str = "trainer-1", **hello: Any) -> Trainer:
        """A trainer that has said Hello; Welcome is still to be heard."""
        fields = {
            "trainer_id": name,
            "boot_id": "boot-1",
            "session_id": f"session-{len(self.trainers):03d}",
            "engines": [ENGINE],
            "slots": 1,
            "device_name": "cpu",
            "device_memory_bytes": 64 << 30,
        }
        said = pb.Hello(**{**fields, **hello})
        trainer = Trainer(await self.call(gateway, self.tokens[name]), said)
        self.trainers.append(trainer)
        await trainer.say(hello=said)
        return trainer

    async def submit(self, name: str = "stars", pictures: int = 2, **changes: Any) -> Tune:
        files = [await self.picture(f"{name}-{number}") for number in range(pictures)]
        new = tunes.NewTune(
            **{
                "tenant_id": self.tenant,
                "name": name,
                "checkpoint_ref": "tunesmith:tiny-shapes",
                "details": {
                    "files": [],
                    "steps": 3,
                    "trigger_words": ["quick"],
                    "hyperparameters": {"rank": 4, "schedule": "linear"},
                },
                "files": [(asset.id, f"a star {number}") for number, asset in enumerate(files)],
                "steps": 3,
                "trigger_words": ["quick"],
                "request_hash": name,
                **changes,
            }
        )
        return (await tunes.submit(self.database, new)).tune

    async def picture(self, name: str) -> Any:
        made = await assets.create(self.database, assets.NewAsset(self.tenant, "file", name, data={}))
        body = f"picture {name}".encode()
        sha256 = hashlib.sha256(body).hexdigest()
        key = f"assets/{made.id}/{sha256}"
        await self.put(key, body)
        return await assets.complete(
            self.database, self.tenant, made.id, size_bytes=len(body), sha256=sha256, object_key=key
        )

    async def put(self, key: str, body: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        await self.objects.write(key, chunks())

    async def upload_lora(self, lease: pb.Lease, body: bytes = LORA) -> pb.Finished:
        """Stands for the PUT; the Finished that announces it."""
        await self.put(f"incoming/{lease.tune_id}/{lease.epoch}/lora.safetensors", body)
        return finished(lease)

    async def tune(self, id: str) -> Tune:
        return await tunes.find(self.database, self.tenant, id)

    async def until(self, id: str, state: TuneState, through: Database | None = None) -> Tune:
        """Waits for the wake-ups that the store sends of the tune, by the database that it is changed through."""
        async with (through or self.database).wakeups.subscribe("tune") as changes:
            while True:
                tune = await self.tune(id)
                if tune.state is state:
                    return tune
                woken = await changes.wait(10)
                assert woken, f"the tune is {tune.state} and nothing happens"

    async def close(self) -> None:
        for trainer in self.trainers:
            await trainer.leave()
        for channel in self.channels:
            await channel.close()
        for gateway in self.gateways:
            await gateway.stop()
            if gateway.database is not self.database:
                await gateway.database.close()
        await self.database.close()


def serialized(message: pb.TrainerMessage | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def finished(lease: pb.Lease, body: bytes = LORA, report_seq: int = 1) -> pb.Finished:
    lora = pb.UploadedObject(name="lora.safetensors", sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
    return pb.Finished(lease=lease, report_seq=report_seq, lora=lora, step=3, final_loss=0.25, pictures=2)


@pytest.fixture
async def stage(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(lambda: Database.open(sqlite_url), tmp_path)
    await stage.start()
    yield stage
    await stage.close()


@pytest.fixture
async def postgres_stage(postgres_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(lambda: Database.open(postgres_url), tmp_path)
    await stage.start()
    yield stage
    await stage.close()

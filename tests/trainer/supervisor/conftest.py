"""A supervisor of its own for each test, with a fake engine, between a fake gateway and fake objects."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.supervisor.fake_gateway import FakeGateway, FakeObjects, Stream
from trainer.supervisor.config import Settings
from trainer.supervisor.supervisor import Supervisor
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))


class Bench:
    """Starts and ends supervisors on one data folder."""

    def __init__(self, gateway: FakeGateway, objects: FakeObjects, folder: Path) -> None:
        self.gateway = gateway
        self.objects = objects
        self.folder = folder
        bases = folder / "bases" / "tiny-shapes"
        bases.mkdir(parents=True)
        self.running: dict[Supervisor, asyncio.Task[None]] = {}
        self.stops: dict[Supervisor, asyncio.Event] = {}

    def start(self, gateways: str | None = None, **settings: Any) -> Supervisor:
        defaults: dict[str, Any] = {
            "gateways": gateways or f"127.0.0.1:{self.gateway.port}",
            "trainer_id": "trainer-1",
            "trainer_token": "tt_secret",
            "data": self.folder / "data",
            "bases": self.folder / "bases",
            "metrics": "127.0.0.1:0",
        }
        supervisor = Supervisor(Settings(**{**defaults, **settings}), FAKE_ENGINE)
        stop = self.stops[supervisor] = asyncio.Event()
        self.running[supervisor] = asyncio.create_task(supervisor.run(stop))
        return supervisor

    async def stop(self, supervisor: Supervisor) -> None:
        """As SIGTERM."""
        self.stops[supervisor].set()
        await asyncio.wait_for(self.running.pop(supervisor), 30)

    async def kill(self, supervisor: Supervisor) -> None:
        """As SIGKILL: nothing is told to anyone."""
        task = self.running.pop(supervisor)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def go(self) -> None:
        """Lets a tune that waits go on."""
        (self.folder / "data" / "work" / "go").touch()

    def assign(self, word: str = "quick", tune_id: str = "tune_1", epoch: int = 1) -> pb.Assign:
        assign = pb.Assign(
            lease=pb.Lease(tune_id=tune_id, epoch=epoch),
            engine="image/stable-diffusion-v1-5",
            pictures=[self.objects.put("/pictures/asset_1", b"a picture")],
        )
        assign.lease_duration.FromSeconds(45)
        assign.checkpoint.builtin.name = "tiny-shapes"
        assign.request.steps = 3
        assign.request.trigger_words.append(word)
        assign.request.base_checkpoint.checkpoint_id = "tunesmith:tiny-shapes"
        return assign


async def welcomed(bench: Bench, **settings: Any) -> tuple[Supervisor, Stream]:
    supervisor = bench.start(**settings)
    stream = await bench.gateway.stream()
    await stream.welcome()
    return supervisor, stream


async def sign_put(bench: Bench, stream: Stream) -> pb.UrlRequest:
    """Answers the next UrlRequest with URLs under the attempt's own prefix."""
    request: pb.UrlRequest = await stream.hear("url_request")
    await stream.say(urls=signed(bench, request))
    return request


def signed(bench: Bench, request: pb.UrlRequest) -> pb.Urls:
    lease = request.lease
    urls = [
        pb.SignedUrl(object=wanted, url=f"{bench.objects.url}/incoming/{lease.tune_id}/{lease.epoch}/{wanted.name}")
        for wanted in request.objects
    ]
    return pb.Urls(request_id=request.request_id, urls=urls)


async def first_step(stream: Stream) -> None:
    """Returns when the trainer has told of a step; a Progress before it tells of phases."""
    while not (await stream.hear("progress")).step:
        pass


async def next_idle_beat(stream: Stream, bench: Bench) -> pb.Heartbeat:
    """The first beat that names no attempt; the supervisor is asked to beat at once."""
    supervisor = next(iter(bench.running))
    while True:
        supervisor.workbench.beat_soon()
        beat: pb.Heartbeat = await stream.hear("heartbeat")
        if not beat.held:
            return beat


async def emptied(folder: Path, name: str = "*") -> None:
    """Returns when nothing of that name lies there: a gateway may hear of a free slot before a thread has tidied up."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(lambda: list(folder.glob(name))):
            pass


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
def objects() -> Iterator[FakeObjects]:
    objects = FakeObjects()
    yield objects
    objects.close()


@pytest.fixture
async def bench(gateway: FakeGateway, objects: FakeObjects, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(gateway, objects, tmp_path)
    yield bench
    for supervisor in list(bench.running):
        await bench.kill(supervisor)

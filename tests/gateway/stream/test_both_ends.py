"""A real gateway and a real supervisor, with a fake engine between its own two pipes: what happens when either dies."""

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.config import Settings as GatewaySettings
from gateway.server import Server
from store import assets, events, keys, tunes
from store.database import Database
from store.objects.local import LocalObjects
from store.states import TERMINAL, TuneState
from store.tables import Tune
from tests.trainer import supervisor as fakes
from trainer.supervisor.config import Settings as TrainerSettings
from trainer.supervisor.supervisor import Supervisor

ENGINE = (sys.executable, str(Path(fakes.__path__[0]) / "fake_engine.py"))


class Service:
    """One gateway and one trainer on one folder; both may be killed and started again."""

    def __init__(self, folder: Path, sqlite_url: str) -> None:
        self.folder = folder
        self.database_url = sqlite_url
        self.grpc = "127.0.0.1:0"
        self.http = "127.0.0.1:0"
        self.objects = LocalObjects(folder / "objects", "http://unused", b"a secret of tests")
        bases = folder / "bases" / "tiny-shapes"
        bases.mkdir(parents=True)

    async def start_gateway(self) -> None:
        self.server = Server(
            GatewaySettings.model_validate(
                {
                    "database_url": self.database_url,
                    "objects_url": (self.folder / "objects").as_uri(),
                    "signing_secret": "a secret of tests",
                    "http": self.http,
                    "grpc": self.grpc,
                    "metrics": "127.0.0.1:0",
                    "heartbeat_seconds": 0.5,
                    "lease_seconds": 30.0,
                    "grace_seconds": 2.0,
                    "judges": 1,
                }
            )
        )
        await self.server.startup()
        self.http, self.grpc = str(self.server._http_address), str(self.server._grpc_address)
        self.serving = asyncio.create_task(self.server.serve())

    async def stop_gateway(self) -> None:
        self.server.stop()
        await self.serving
        await self.server.shutdown()

    async def prepare(self) -> None:
        self.database = await Database.open(self.database_url)
        self.tenant = (await keys.create_tenant(self.database, "acme")).id
        self.token = await keys.create_trainer_token(self.database, "trainer-1")
        self.checkpoint = await assets.find(self.database, self.tenant, "tunesmith:tiny-shapes")

    def start_trainer(self) -> None:
        settings = TrainerSettings(
            gateways=(self.grpc,),
            trainer_id="trainer-1",
            trainer_token=self.token,
            data=self.folder / "trainer",
            bases=self.folder / "bases",
            metrics="127.0.0.1:0",
        )
        self.supervisor = Supervisor(settings, ENGINE)
        self.stop = asyncio.Event()
        self.training = asyncio.create_task(self.supervisor.run(self.stop))

    async def kill_trainer(self) -> None:
        self.training.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.training

    def go(self) -> None:
        (self.folder / "trainer" / "work" / "go").touch()

    async def submit(self, word: str = "quick") -> Tune:
        made = await assets.create(self.database, assets.NewAsset(self.tenant, "file", "picture", data={}))
        body = b"a picture"
        sha256 = hashlib.sha256(body).hexdigest()
        key = f"assets/{made.id}/{sha256}"

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        await self.objects.write(key, chunks())
        await assets.complete(self.database, self.tenant, made.id, size_bytes=len(body), sha256=sha256, object_key=key)
        details: dict[str, Any] = {"steps": 3, "trigger_words": [word]}
        new = tunes.NewTune(
            tenant_id=self.tenant,
            name=f"tune-{word}",
            checkpoint_ref="tunesmith:tiny-shapes",
            details=details,
            files=[(made.id, None)],
            steps=3,
            trigger_words=[word],
            request_hash=word,
        )
        return (await tunes.submit(self.database, new)).tune

    async def until(self, tune: Tune, **wanted: Any) -> Tune:
        """Polls as any other process would: this database handle is not the gateway's."""
        async with asyncio.timeout(60):
            while True:
                row = await tunes.find(self.database, self.tenant, tune.id)
                if all(getattr(row, name) == value for name, value in wanted.items()):
                    return row
                assert row.state not in TERMINAL, (row.state, row.status_details)
                await asyncio.sleep(0.05)


@pytest.fixture
async def service(tmp_path: Path, sqlite_url: str) -> AsyncIterator[Service]:
    service = Service(tmp_path, sqlite_url)
    await service.start_gateway()
    await service.prepare()
    service.start_trainer()
    yield service
    await service.kill_trainer()
    with contextlib.suppress(grpc.RpcError):
        await service.stop_gateway()
    await service.database.close()


async def test_a_tune_succeeds(service: Service) -> None:
    tune = await service.submit()

    done = await service.until(tune, state=TuneState.SUCCEEDED)

    lora = await assets.find(service.database, service.tenant, done.output_lora_ids[0])
    assert lora.object_key is not None
    assert b"".join([chunk async for chunk in service.objects.read(lora.object_key)]) == f"lora of {tune.id}".encode()
    assert (done.step, done.attempts, done.available) == (3, 1, 1)
    assert done.resolved_recipe == '{"seed":7}'


async def test_a_gateway_that_goes_away_amid_a_tune_costs_no_step(service: Service) -> None:
    tune = await service.submit("waits")
    await service.until(tune, step=1)

    await service.stop_gateway()
    service.go()
    await service.start_gateway()
    done = await service.until(tune, state=TuneState.SUCCEEDED)

    log = await events.list_events(service.database, tune.id)
    steps = [step["step"] for event in log if event.kind == "metrics" for step in event.body["steps"]]
    assert steps == [1, 2, 3]
    assert (done.attempts, done.lease_epoch) == (1, 1)


async def test_a_trainer_killed_amid_a_tune_has_it_again_at_once(service: Service) -> None:
    tune = await service.submit("waits")
    await service.until(tune, step=1)

    await service.kill_trainer()
    service.start_trainer()
    await service.until(tune, lease_epoch=2, state=TuneState.RUNNING)
    service.go()
    done = await service.until(tune, state=TuneState.SUCCEEDED)

    assert done.lease_epoch == 2


async def test_a_trainer_told_to_end_gives_its_tune_back(service: Service) -> None:
    tune = await service.submit("waits")
    await service.until(tune, step=1)

    service.stop.set()
    await service.training
    returned = await service.until(tune, state=TuneState.QUEUED)

    assert returned.attempts == 0


async def test_a_cancelled_tune_stops(service: Service) -> None:
    tune = await service.submit("waits")
    await service.until(tune, step=1)

    await tunes.cancel(service.database, service.tenant, tune.id)

    await service.until(tune, state=TuneState.CANCELLED)


async def test_an_engine_that_always_dies_fails_the_tune(service: Service) -> None:
    tune = await service.submit("dies")

    failed = await service.until(tune, state=TuneState.FAILED)

    assert failed.lease_epoch == 3
    assert "SIGKILL" in failed.status_details

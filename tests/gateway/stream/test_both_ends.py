"""A real gateway and a real supervisor, with a fake engine between its own two pipes: what happens when either dies,
and when the database goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog

from gateway.config import Settings as GatewaySettings
from gateway.server import Server
from store import assets, events, keys, trainers, tunes
from store.database import Database
from store.errors import DatabaseAway
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from store.states import TERMINAL, TuneState
from store.tables import Tune
from tests.servers.postgres import PostgresServer
from tests.trainer import supervisor as fakes
from trainer.supervisor.config import Settings as TrainerSettings
from trainer.supervisor.supervisor import Supervisor

ENGINE = (sys.executable, str(Path(fakes.__path__[0]) / "fake_engine.py"))


class Service:
    """One gateway and one trainer on one folder; both may be killed and started again."""

    def __init__(self, folder: Path, database_url: str, lease_seconds: float = 30.0) -> None:
        self.folder = folder
        self.database_url = database_url
        self.lease_seconds = lease_seconds
        self.grpc = "127.0.0.1:0"
        self.http = "127.0.0.1:0"
        self.objects = LocalObjects(folder / "objects", Signer("http://unused", b"a secret of tests"))
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
                    "lease_seconds": self.lease_seconds,
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
        _, self.key = await keys.create_key(self.database, self.tenant, "caller")
        self.checkpoint = await assets.find(self.database, self.tenant, "tunesmith:tiny-shapes")

    def start_trainer(self) -> None:
        self.supervisor = self.supervisor_of("trainer-1", self.token)
        self.stop = asyncio.Event()
        self.training = asyncio.create_task(self.supervisor.run(self.stop))

    def supervisor_of(self, name: str, token: str) -> Supervisor:
        settings = TrainerSettings(
            gateways=(self.grpc,),
            trainer_id=name,
            trainer_token=token,
            data=self.folder / name,
            bases=self.folder / "bases",
            metrics="127.0.0.1:0",
        )
        return Supervisor(settings, ENGINE)

    async def kill_trainer(self) -> None:
        self.training.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.training

    def go(self, trainer: str = "trainer-1") -> None:
        (self.folder / trainer / "work" / "go").touch()

    async def submit(self, word: str = "quick") -> Tune:
        made = await assets.create(self.database, assets.NewAsset(self.tenant, "file", "picture", data={}))
        body = b"a picture"
        sha256 = hashlib.sha256(body).hexdigest()
        key = f"assets/{made.id}/{sha256}"

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        await self.objects.write(key, chunks())
        await assets.complete(self.database, self.tenant, made.id, size_bytes=len(body), sha256=sha256, object_key=key)
        self.picture = made.id
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
                with contextlib.suppress(DatabaseAway):
                    row = await tunes.find(self.database, self.tenant, tune.id)
                    if all(getattr(row, name) == value for name, value in wanted.items()):
                        return row
                    assert row.state not in TERMINAL, (row.state, row.status_details)
                await asyncio.sleep(0.05)

    async def create(self, word: str) -> httpx.Response:
        """As a caller asks for a tune. The picture was there before."""
        checkpoint = {"checkpoint_id": "tunesmith:tiny-shapes", "engine": "image/stable-diffusion-v1-5"}
        details = {
            "tune_type": "lora_tune",
            "base_checkpoint": checkpoint,
            "files": [{"file_id": self.picture}],
            "steps": 3,
            "trigger_words": [word],
        }
        async with httpx.AsyncClient(base_url=f"http://{self.http}", timeout=60) as client:
            body = {"name": f"tune-{word}", "details": details}
            return await client.post("/v1/tune", json=body, headers={"Authorization": f"Bearer {self.key}"})


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


async def test_a_drained_trainer_finishes_its_tune_and_takes_the_next_when_it_is_resumed(service: Service) -> None:
    first = await service.submit("waits")
    await service.until(first, step=1)

    await trainers.drain(service.database, "trainer-1", "a new disk")
    async with asyncio.timeout(20):
        while not service.supervisor.workbench._end.is_drained:  # noqa: ASYNC110  (as until() does: nobody else waits)
            await asyncio.sleep(0.05)
    second = await service.submit()
    service.go()
    done = await service.until(first, state=TuneState.SUCCEEDED)
    [standing] = await trainers.list_trainers(service.database)
    waiting = await service.until(second, state=TuneState.QUEUED)
    await trainers.resume(service.database, "trainer-1")
    await service.until(second, state=TuneState.SUCCEEDED, lease_epoch=1)

    assert (done.attempts, done.lease_epoch) == (1, 1)
    assert (standing.connected, standing.holds, standing.trainer.drain_reason) == (True, [], "a new disk")
    assert waiting.lease_epoch == 0


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


@pytest.fixture(params=["stops", "hangs"])
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    with PostgresServer(durable=True) as server:
        yield Outage(server, hangs=request.param == "hangs")


@pytest.fixture
async def fragile(tmp_path: Path, outage: Outage) -> AsyncIterator[Service]:
    """On a database that goes away, with a lease that is shorter than that, and a second trainer that would take over
    what the first one loses.
    """
    server = outage.server
    service = Service(tmp_path, server.url_of(server.create_database()), lease_seconds=2.0)
    await service.start_gateway()
    await service.prepare()
    service.start_trainer()
    spare = service.supervisor_of("trainer-2", await keys.create_trainer_token(service.database, "trainer-2"))
    sparing = asyncio.create_task(spare.run(asyncio.Event()))
    yield service
    sparing.cancel()
    await asyncio.gather(sparing, return_exceptions=True)
    await service.kill_trainer()
    await service.stop_gateway()
    await service.database.close()


async def test_a_database_away_for_longer_than_a_lease_costs_nothing_but_time(fragile: Service, outage: Outage) -> None:
    tune = await fragile.submit("waits")
    holder = (await fragile.until(tune, step=1)).lease_trainer_id
    assert holder is not None
    before = await trainers.current(fragile.database, holder)

    # Two trainers' in turn, each half a second after the one before: a lease and a half.
    unrecorded = Heard("beat_unrecorded", 12)
    with structlog.testing.capture_logs(processors=[unrecorded]):
        outage.begin()
        fragile.go(holder)  # steps 2 and 3, and the LoRA, come while it is away
        creating = asyncio.create_task(fragile.create("meanwhile"))
        await asyncio.wait_for(unrecorded.enough.wait(), 60)
        outage.end()
    done = await fragile.until(tune, state=TuneState.SUCCEEDED)
    created = await creating

    assert (done.attempts, done.lease_epoch, done.lease_trainer_id) == (1, 1, holder)
    history = await events.list_events(fragile.database, tune.id)
    assert [step["step"] for event in history if event.kind == "metrics" for step in event.body["steps"]] == [1, 2, 3]
    after = await trainers.current(fragile.database, holder)
    assert before is not None
    assert after is not None
    assert after.session_id == before.session_id, "the stream outlives the outage"
    if outage.hangs:
        assert created.status_code == 201, "it had to wait, and lost nothing"
    else:
        assert created.status_code == 503
        assert created.headers["retry-after"]
        assert (await fragile.create("meanwhile")).status_code == 201


class Outage:
    """A database that goes away: refused, or connected and silent."""

    def __init__(self, server: PostgresServer, *, hangs: bool) -> None:
        self.server = server
        self.hangs = hangs

    def begin(self) -> None:
        if self.hangs:
            self.server.freeze()
        else:
            self.server.stop(signal.SIGQUIT)

    def end(self) -> None:
        if self.hangs:
            self.server.thaw()
        else:
            self.server.start()


class Heard:
    """A structlog processor that waits for so many lines of one action."""

    def __init__(self, action: str, times: int) -> None:
        self._action = action
        self._left = times
        self.enough = asyncio.Event()

    def __call__(self, logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self._left -= entry.get("action") == self._action
        if self._left <= 0:
            self.enough.set()
        return entry

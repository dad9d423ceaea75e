"""How soon a tune goes on when something dies, and how soon it stops when it is cancelled: two gateways on one
PostgreSQL, two warm trainers, the lease as it is set from the start. Read from the tunes' logs, so by the database's
clock."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.basics.spread import spread
from store import keys
from store.database import Database
from tests.servers.gateway import Gateway
from tests.servers.photographs import photographs
from tests.servers.postgres import PostgresServer
from tests.servers.trainer import Trainer

AWAY = 30.0  # seconds
LONG = 100_000  # steps: no tune ends by itself
OFTEN = {"snapshot_every_seconds": 2.0, "prior_preservation_weight": 0}
Log = list[dict[str, Any]]


def measure(quick: bool) -> dict[str, Any]:
    """Seconds from the fault to what follows, and how many steps were made twice."""
    rounds = 1 if quick else 5
    with _stage() as stage:
        stage.warm_up()
        return {
            "trainer_killed": _spreads(stage.trainer_killed() for _ in range(rounds)),
            "trainer_killed_and_started_again": _spreads(stage.trainer_started_again() for _ in range(rounds)),
            "gateway_killed": _spreads(stage.gateway_killed() for _ in range(rounds)),
            "database_away": _spreads(stage.database_away() for _ in range(rounds)),
            "cancelled": _spreads(stage.cancelled(by) for by in ("own", "other") * 2 * rounds),
        }


def _spreads(rounds: Iterable[dict[str, float]]) -> dict[str, Any]:
    seen = list(rounds)
    return {name: spread([each[name] for each in seen], 2) for name in seen[0]}


@contextlib.contextmanager
def _stage() -> Iterator[_Stage]:
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        postgres = opened.enter_context(PostgresServer(durable=True))
        url = postgres.url_of(postgres.create_database())
        ports = {name: _free_port() for name in ("a", "b")}  # of their own: trainers come again to the same ones
        gateways = {
            name: opened.enter_context(Gateway(url, folder / name, _settings(folder, name, port)))
            for name, port in ports.items()
        }
        trainers = {}
        for name, token in asyncio.run(_tokens(url, ["trainer-1", "trainer-2"])).items():
            addresses = [f"127.0.0.1:{port}" for port in ports.values()]
            trainer = Trainer(addresses, token, folder / name, {"TUNESMITH_TRAINER_ID": name})
            trainers[name] = opened.enter_context(trainer)
        yield _Stage(postgres, url, gateways, trainers, photographs(folder)[0])


def _settings(folder: Path, name: str, port: int) -> dict[str, str]:
    return {
        "TUNESMITH_GATEWAY_ID": name,
        "TUNESMITH_GRPC": f"127.0.0.1:{port}",
        "TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri(),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


async def _tokens(url: str, names: list[str]) -> dict[str, str]:
    database = await Database.open(url, wakeups=False)
    try:
        return {name: await keys.create_trainer_token(database, name) for name in names}
    finally:
        await database.close()


class _Stage:
    """Gateways "a" and "b", and two trainers that may go to either."""

    def __init__(
        self,
        postgres: PostgresServer,
        url: str,
        gateways: dict[str, Gateway],
        trainers: dict[str, Trainer],
        picture: Path,
    ) -> None:
        self._postgres = postgres
        self._url = url
        self._gateways = gateways
        self._trainers = trainers
        self._count = 0
        with gateways["a"].client() as client:
            self._file = client.upload(picture)

    def warm_up(self) -> None:
        """Two tunes at once, one a trainer: each has the base loaded then."""
        tunes = [self._begun(), self._begun()]
        for tune in tunes:
            self._until(tune, lambda log: len(_steps(log)) >= 5)
        for tune in tunes:
            self._end(tune)

    def trainer_killed(self) -> dict[str, float]:
        """It stays dead: the other one goes on when the lease has ended."""
        tune, trainer, _ = self._running()
        killed = datetime.now(UTC)
        self._trainers[trainer].kill()
        log = self._until(tune, lambda log: bool(_steps(log, 2)))
        self._trainers[trainer].start()
        self._end(tune)
        return {
            "to_assigned_seconds": (_at(_first(log, 2, "ASSIGNED")) - killed).total_seconds(),
            "to_next_step_seconds": (_at(_metrics(log, 2)[0]) - killed).total_seconds(),
            "steps_repeated_needlessly": _repeated_needlessly(log),
        }

    def trainer_started_again(self) -> dict[str, float]:
        """Its new process says Hello before the lease has ended, which ends it."""
        tune, trainer, _ = self._running()
        self._trainers[trainer].kill()
        self._trainers[trainer].start()
        log = self._until(tune, lambda log: bool(_steps(log, 2)))
        self._end(tune)
        freed = _at(_first(log, 1, "LEASE_ENDED"))
        return {
            "hello_to_assigned_seconds": (_at(_first(log, 2, "ASSIGNED")) - freed).total_seconds(),
            "steps_repeated_needlessly": _repeated_needlessly(log),
        }

    def gateway_killed(self) -> dict[str, float]:
        """The trainer's; it goes to the other one, and trains on meanwhile."""
        tune, _, gateway = self._running()
        self._gateways[gateway].kill()
        self._gateways[gateway].start()
        return self._cost(self._ended_after(tune, self._step(tune) + 50))

    def database_away(self) -> dict[str, float]:
        """The tune trains on meanwhile, and tells of it afterwards."""
        tune, _, _ = self._running()
        before = self._step(tune)
        self._postgres.stop()
        time.sleep(AWAY)
        self._postgres.start()
        back = datetime.now(UTC)
        log = self._ended_after(tune, before + 50)
        told = next(event for event in _metrics(log) if _at(event) > back)
        return {"to_told_seconds": (_at(told) - back).total_seconds(), **self._cost(log)}

    def _ended_after(self, tune: str, step: int) -> Log:
        """The log up to the step; then the tune is cancelled."""
        log = self._until(tune, lambda log: log[-1]["event"]["type"] == "metrics" and _steps(log[-1:])[-1] >= step)
        self._end(tune)
        return log

    def _cost(self, log: Log) -> dict[str, float]:
        steps = _steps(log)
        return {
            "attempts": max(event["event"].get("attempt", 0) for event in log),
            "steps_repeated": len(steps) - len(set(steps)),
            "steps_missing": max(steps) - len(set(steps)),
        }

    def cancelled(self, by: str) -> dict[str, float]:
        """Through the trainer's own gateway or the other one."""
        tune, _, gateway = self._running()
        asked = gateway if by == "own" else next(name for name in self._gateways if name != gateway)
        with self._gateways[asked].client() as client:
            client.post(f"/v1/tune/{tune}/cancel").raise_for_status()
        log = self._until(tune, lambda log: log[-1]["event"].get("status") == "cancelled")
        requested = next(event for event in log if event["event"].get("reason") == "CANCEL_REQUESTED")
        return {
            "to_stopped_seconds": (_at(log[-1]) - _at(requested)).total_seconds(),
            "seconds_a_step": 1 / _metrics(log)[-1]["event"]["steps"][-1]["steps_per_second"],
        }

    def _begun(self) -> str:
        self._count += 1
        with self._gateways["a"].client() as client:
            tune = client.tune(f"tune-{self._count}", [self._file], steps=LONG, hyperparameters=OFTEN)
        return str(tune["id"])

    def _running(self) -> tuple[str, str, str]:
        """A tune with two snapshots, its trainer, and the gateway that has that one's stream."""
        tune = self._begun()
        self._until(tune, lambda log: len(_snapshots(log)) >= 2)
        query = "SELECT trainer_id, gateway_id FROM tunes JOIN trainers ON trainer_id = lease_trainer_id WHERE id = %s"
        with psycopg.connect(self._url) as connection:
            found = connection.execute(query, (tune,)).fetchone()
        assert found is not None
        return tune, *found

    def _step(self, tune: str) -> int:
        with self._gateways["a"].client() as client:
            return int(client.get(f"/v1/tune/{tune}").json()["progress"]["step"])

    def _end(self, tune: str) -> None:
        with self._gateways["a"].client() as client:
            client.post(f"/v1/tune/{tune}/cancel").raise_for_status()
        self._until(tune, lambda log: log[-1]["event"].get("status") == "cancelled")

    def _until(self, tune: str, is_it: Callable[[Log], bool]) -> Log:
        """Reads the log from its beginning until it is."""
        log: Log = []
        with self._gateways["a"].client() as client:
            for event in client.events(tune):
                log.append(event)
                if is_it(log):
                    return log
        raise RuntimeError(f"{tune} ended before its time: {log[-1]}")


def _metrics(log: Log, epoch: int | None = None) -> Log:
    told = [event for event in log if event["event"]["type"] == "metrics"]
    return [event for event in told if epoch in (None, event["event"]["steps"][0]["epoch"])]


def _steps(log: Log, epoch: int | None = None) -> list[int]:
    return [step["step"] for event in _metrics(log, epoch) for step in event["event"]["steps"]]


def _snapshots(log: Log) -> list[int]:
    return [event["event"]["step"] for event in log if event["event"]["type"] == "snapshot"]


def _first(log: Log, number: int, reason: str) -> dict[str, Any]:
    """The event of that number among those with the reason."""
    return [event for event in log if event["event"].get("reason") == reason][number - 1]


def _repeated_needlessly(log: Log) -> int:
    """Steps of the second attempt that a snapshot of the first one held already."""
    before = [event for event in log if event["id"] < _first(log, 2, "ASSIGNED")["id"]]
    return max(_snapshots(before)) + 1 - min(_steps(log, 2))


def _at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["created_at"])

"""The power goes, for all at once: gateways, trainers and PostgreSQL. The same commands go on from there."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.gateway import Gateway
from tests.servers.postgres import PostgresServer
from tests.servers.service import Client
from tests.servers.trainer import Trainer

CUTS = 3
STEPS = 40
RECIPE = {"snapshot_every_seconds": 0.2, "prior_preservation_weight": 0}
LEASE = {"TUNESMITH_LEASE_SECONDS": "3", "TUNESMITH_HEARTBEAT_SECONDS": "0.5"}


class Site:
    """One PostgreSQL that keeps what it has confirmed, two gateways, one trainer; all in one folder."""

    def __init__(self, postgres: PostgresServer, folder: Path) -> None:
        self._postgres = postgres
        self._url = postgres.url_of(postgres.create_database())
        settings = {**LEASE, "TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri()}
        self._gateways = [Gateway(self._url, folder / name, settings) for name in ("a", "b")]
        self._folder = folder / "trainer"
        self._trainer: Trainer | None = None

    def start(self) -> None:
        """Whatever has been before."""
        if not self._postgres.is_running():
            self._postgres.start()
        for gateway in self._gateways:
            gateway.start()
        addresses = [gateway.ready["grpc"] for gateway in self._gateways]
        self._trainer = Trainer(addresses, self._gateways[0].trainer_token, self._folder)
        self._trainer.start()

    def cut(self) -> None:
        """Nobody is told, and PostgreSQL has to recover from its log."""
        self.end()
        self._postgres.stop(signal.SIGQUIT)

    def end(self) -> None:
        for part in (self._trainer, *self._gateways):
            if part is not None:
                part.kill()

    def client(self) -> Client:
        return self._gateways[1].client()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with PostgresServer(durable=True) as postgres:
        site = Site(postgres, tmp_path)
        site.start()
        try:
            yield site
        finally:
            with contextlib.suppress(AssertionError):  # one that was never started
                site.end()


@pytest.mark.slow
def test_power_cuts_lose_no_accepted_tune_and_change_no_byte(site: Site, pictures: list[Path]) -> None:
    """Everything dies: every accepted tune ends all the same, on PostgreSQL too."""
    accepted: list[str] = []
    with site.client() as client:
        file = client.upload(pictures[0])
    for cut in range(CUTS):
        with site.client() as client:
            accepted += [begun(client, file, f"tune-{cut}-{number}") for number in range(2)]
            until(client, accepted[-2], "snapshot")
        site.cut()
        site.start()

    with site.client() as client:
        ended = [client.ended(tune_id) for tune_id in accepted]
        loras = {client.download(tune["output_lora_ids"][0]) for tune in ended}

    assert [tune["status"] for tune in ended] == ["succeeded"] * 2 * CUTS
    assert len(loras) == 1  # one recipe, so one file, however often it was broken off


def begun(client: Client, file: str, name: str) -> str:
    tune = client.tune(name, [file], steps=STEPS, hyperparameters=RECIPE)
    return str(tune["id"])


def until(client: Client, tune_id: str, kind: str) -> None:
    """Reads the tune's events up to the first of a kind."""

    def wanted(event: dict[str, Any]) -> bool:
        return bool(event["event"]["type"] == kind)

    with contextlib.closing(client.events(tune_id)) as events:
        assert any(map(wanted, events))

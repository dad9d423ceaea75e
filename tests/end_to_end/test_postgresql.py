"""The production shape: a gateway on PostgreSQL and a trainer, each a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.servers.gateway import Gateway
from tests.servers.postgres import PostgresServer
from tests.servers.trainer import Trainer


def test_tune_succeeds_on_postgresql(tmp_path: Path, pictures: list[Path]) -> None:
    with (
        PostgresServer() as postgres,
        Gateway(postgres.url_of(postgres.create_database()), tmp_path / "gateway") as gateway,
        Trainer([gateway.ready["grpc"]], gateway.trainer_token, tmp_path / "trainer"),
        gateway.client() as client,
    ):
        tune = client.tune("on-postgresql", [client.upload(path) for path in pictures[:2]])

        ended = client.ended(tune["id"])

        assert ended["status"] == "succeeded"
        assert len(client.download(ended["output_lora_ids"][0])) > 10_000

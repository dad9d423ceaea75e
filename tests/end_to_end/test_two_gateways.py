"""Two gateways on one PostgreSQL, each a process of its own: whatever is asked of one is done through the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.daemon import Daemon
from tests.servers.gateway import Gateway
from tests.servers.postgres import PostgresServer
from tests.servers.service import Client, tune_request
from tests.servers.trainer import Trainer

POLL = 2.0  # seconds; what is not told is found by then
STEPS = 60  # some seconds' worth
FAST = {"prior_preservation_weight": 0}
ROUNDS = 3  # of polling, that a busy machine may take for what one should

#: In front of the server's own, so that no replica ever hears of another. What would have been told is kept.
MUTED = """
    CREATE TABLE lost (payload text);
    CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'INSERT INTO lost VALUES ($2)'
"""


@pytest.fixture
def database(postgres_url: str) -> str:
    """Its name."""
    return postgres_url.rpartition("/")[2]


@pytest.fixture
def muted(postgres_server: PostgresServer, database: str) -> None:
    """NOTIFY is lost, for good."""
    postgres_server.execute(MUTED, database)
    postgres_server.execute(f"ALTER DATABASE {database} SET search_path = public, pg_catalog")


@pytest.fixture
def gateways(postgres_url: str, tmp_path: Path) -> Iterator[list[Gateway]]:
    """Two replicas with one tenant, one folder of objects, one secret."""
    shared = {
        "TUNESMITH_OBJECTS_URL": (tmp_path / "objects").as_uri(),
        "TUNESMITH_HEARTBEAT_SECONDS": "15",  # so seldom that no beat brings what a poll should
    }
    with contextlib.ExitStack() as running:
        yield [running.enter_context(Gateway(postgres_url, tmp_path / name, shared)) for name in ("a", "b")]


@pytest.fixture
def trainer_on_b(gateways: list[Gateway], tmp_path: Path) -> Iterator[Trainer]:
    with Trainer([gateways[1].ready["grpc"]], gateways[1].trainer_token, tmp_path / "trainer") as trainer:
        yield trainer


@pytest.mark.slow
def test_a_create_that_is_sent_to_both_at_once_again_and_again_gives_one_tune(gateways: list[Gateway]) -> None:
    """With an Idempotency-Key, and without one, as the TypeScript SDK's retries come; another body is refused."""
    with gateways[0].client() as on_a, gateways[1].client() as on_b, ThreadPoolExecutor(8) as callers:
        data = {"asset_type": "file", "name": "a", "data": {"asset_type": "file"}}
        file_id = on_a.post("/v1/assets", json=data).json()["asset"]["id"]
        for name, headers in (("keyed", {"Idempotency-Key": "once"}), ("bare", {})):
            body = tune_request(name, [file_id])

            answers = list(
                callers.map(
                    lambda client, body=body, headers=headers: client.post("/v1/tune", json=body, headers=headers),
                    [on_a, on_b] * 8,
                )
            )
            other = on_b.post("/v1/tune", json={**body, "description": "another"}, headers=headers)

            assert [answer.status_code for answer in answers] == [201] * 16
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert sum("idempotent-replay" not in answer.headers for answer in answers) == 1
            assert other.status_code == (422 if headers else 409)
        assert on_b.get("/v1/tunes").json()["total"] == 2


@pytest.mark.slow
def test_tune_created_on_one_gateway_is_trained_watched_and_cancelled_through_the_other(
    gateways: list[Gateway], trainer_on_b: Trainer, pictures: list[Path]
) -> None:
    """Cancel by another replica: a wake-up; and the GPU is free for the next tune."""
    with gateways[0].client() as on_a:
        files = [on_a.upload(pictures[0])]
        doomed = on_a.tune("doomed", files, steps=100_000)
        until_step(on_a, doomed["id"])
        on_a.post(f"/v1/tune/{doomed['id']}/cancel").raise_for_status()
        cancelled = on_a.ended(doomed["id"])
        made = value(trainer_on_b, "tunesmith_trainer_steps_total")
        following = on_a.ended(on_a.tune("following", files, steps=20)["id"])

    assert value(gateways[0], "tunesmith_trainers_connected") == 0
    assert cancelled["status"] == "cancelled"
    assert cancelled["progress"]["step"] == made  # what had been made when it stopped
    assert following["status"] == "succeeded"
    assert value(trainer_on_b, "tunesmith_trainer_steps_total") == made + 20


@pytest.mark.slow
@pytest.mark.usefixtures("muted")
def test_polling_finds_work_events_and_cancels_where_every_notify_is_lost(
    gateways: list[Gateway], trainer_on_b: Trainer, pictures: list[Path], postgres_url: str
) -> None:
    with gateways[0].client() as on_a:
        tune = on_a.tune("unheard-of", [on_a.upload(pictures[0])], steps=100_000)
        until_step(on_a, tune["id"])
        asked = on_a.post(f"/v1/tune/{tune['id']}/cancel").json()
        cancelled = on_a.ended(tune["id"])
        log = history(on_a, tune["id"])

    started = next(event for event in log if event["event"].get("status") == "running")
    assert seconds(log[0], started) < ROUNDS * POLL
    assert cancelled["status"] == "cancelled"
    assert seconds({"created_at": asked["updated_at"]}, log[-1]) < ROUNDS * POLL
    assert {"queue", "cancel", "tune"} <= lost_topics(postgres_url)


@pytest.mark.slow
def test_wake_ups_whose_connections_are_terminated_lose_no_tune(
    gateways: list[Gateway],
    trainer_on_b: Trainer,
    pictures: list[Path],
    postgres_server: PostgresServer,
    database: str,
) -> None:
    terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    with gateways[0].client() as on_a:
        files = [on_a.upload(pictures[0])]
        for number in range(3):
            postgres_server.execute(f"{terminate} AND query ~ 'LISTEN|pg_notify|SELECT 1$'")
            ended = on_a.ended(on_a.tune(f"between-{number}", files, steps=5)["id"])
            assert ended["status"] == "succeeded"

    assert "Wake-ups are away" in gateways[0].log()
    assert "Wake-ups are away" in gateways[1].log()


@pytest.mark.slow
def test_gateway_that_dies_mid_tune_sends_its_trainer_to_the_other_and_not_one_step_is_repeated(
    gateways: list[Gateway], pictures: list[Path], tmp_path: Path
) -> None:
    """Gateway dies mid-tune: training goes on; the trainer reconnects to any replica; CONTINUE."""
    addresses = [gateway.ready["grpc"] for gateway in gateways]
    with Trainer(addresses, gateways[0].trainer_token, tmp_path / "trainer") as trainer:
        chosen = next(gateway for gateway in gateways if value(gateway, "tunesmith_trainers_connected"))
        other = next(gateway for gateway in gateways if gateway is not chosen)
        with other.client() as caller:
            tune = caller.tune("orphaned", [caller.upload(pictures[0])], steps=STEPS, hyperparameters=FAST)
            until_step(caller, tune["id"])

            chosen.kill()

            ended = caller.ended(tune["id"])
            log = history(caller, tune["id"])
        made = value(trainer, "tunesmith_trainer_steps_total")
        assert value(other, "tunesmith_trainers_connected") == 1
    steps = [step["step"] for event in log if event["event"]["type"] == "metrics" for step in event["event"]["steps"]]
    assert ended["status"] == "succeeded"
    assert made == STEPS
    assert steps == list(range(1, STEPS + 1))
    assert max(event["event"].get("attempt", 0) for event in log) == 1


def lost_topics(database_url: str) -> set[str]:
    """Of the wake-ups that nobody heard."""
    with psycopg.connect(database_url) as connection:
        payloads = [row[0] for row in connection.execute("SELECT payload FROM lost")]
    return {topic for payload in payloads for topic, _ in json.loads(payload)[1]}


def until_step(client: Client, tune_id: str) -> None:
    """Watches the tune until it has made a step."""
    with contextlib.closing(client.events(tune_id)) as events:
        assert any(event["event"]["type"] == "metrics" for event in events)


def history(client: Client, tune_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/tune/{tune_id}/events:list", params={"limit": 1000}).json()["data"]
    return found


def seconds(first: dict[str, Any], last: dict[str, Any]) -> float:
    """Between two events, by the database's clock."""
    first_at, last_at = (datetime.fromisoformat(event["created_at"]) for event in (first, last))
    return (last_at - first_at).total_seconds()


def value(daemon: Daemon, name: str) -> float:
    """Of one of a process's metrics."""
    metrics = text_string_to_metric_families(httpx.get(daemon.ready["metrics"]).text)
    [sample] = [sample for metric in metrics for sample in metric.samples if sample.name == name]
    return sample.value

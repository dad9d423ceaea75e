"""Processes are killed under a tune; the tune finishes all the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.processes import children, descendants
from tests.servers.service import Client, Service

SOON = {"TUNESMITH_LEASE_SECONDS": "3", "TUNESMITH_HEARTBEAT_SECONDS": "0.5", "TUNESMITH_STEP_DEADLINE": "5"}
MOMENTS = 10  # how often everything is killed
LONGEST_LIFE = 25.0  # seconds; starting takes about the half of it


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Service]:
    """A service of one test's own, with a lease and a step's deadline short enough to wait for."""
    with Service(tmp_path / "service", environment=SOON) as service:
        yield service


def first_step(client: Client, tune_id: str) -> None:
    """Waits until the tune has made a step."""
    with contextlib.closing(client.events(tune_id)) as events:
        assert any(event["event"]["type"] == "metrics" for event in events)


@pytest.mark.slow
def test_trainer_killed_mid_tune_is_followed_by_another_attempt(fragile: Service, pictures: list[Path]) -> None:
    with fragile.client() as client:
        tune = client.tune("killed", [client.upload(pictures[0])], steps=200)
        first_step(client, tune["id"])

        os.kill(fragile.ready["pids"]["trainer"][0], signal.SIGKILL)

        assert client.ended(tune["id"])["status"] == "succeeded"
        events = client.get(f"/v1/tune/{tune['id']}/events:list", params={"limit": 1000}).json()["data"]
    attempts = [event["event"]["attempt"] for event in events if event["event"]["type"] == "status_changed"]
    assert max(attempts) == 2


@pytest.mark.slow
def test_engine_that_hangs_is_killed_and_its_tune_goes_on_from_the_newest_snapshot(
    fragile: Service, pictures: list[Path]
) -> None:
    """Engine hangs: it is killed when its step is overdue; another attempt, from the newest snapshot."""
    often = {"prior_preservation_weight": 0, "snapshot_every_seconds": 0.2}
    with fragile.client() as client:
        tune = client.tune("hung", [client.upload(pictures[0])], steps=120, hyperparameters=often)
        snapshot = snapshot_of_a_steady_tune(client, tune["id"])

        [engine] = children(fragile.ready["pids"]["trainer"][0])
        os.kill(engine, signal.SIGSTOP)

        ended = client.ended(tune["id"])
        events = client.get(f"/v1/tune/{tune['id']}/events:list", params={"limit": 1000}).json()["data"]
    steps = [step for event in events if event["event"]["type"] == "metrics" for step in event["event"]["steps"]]
    assert ended["status"] == "succeeded"
    assert "ENGINE_HUNG" in [event["event"].get("reason") for event in events]
    assert next(step["step"] for step in steps if step["epoch"] == 2) > snapshot


def snapshot_of_a_steady_tune(client: Client, tune_id: str) -> int:
    """Waits for a snapshot, and until steps have a pace, by which a hang is told; returns the snapshot's step."""
    snapshot, chunks = 0, 0
    with contextlib.closing(client.events(tune_id)) as events:
        for event in (each["event"] for each in events):
            snapshot = snapshot or (event["step"] if event["type"] == "snapshot" else 0)
            chunks += event["type"] == "metrics"
            if snapshot and chunks >= 3:
                break
    return snapshot


@pytest.mark.slow
def test_gateway_stopped_mid_tune_costs_no_step(fragile: Service, pictures: list[Path]) -> None:
    with fragile.client() as client:
        tune = client.tune("orphaned", [client.upload(pictures[0])], steps=300)
        first_step(client, tune["id"])

        os.kill(fragile.ready["pids"]["gateway"][0], signal.SIGTERM)

        ended = ended_after_restart(client, tune["id"])
        events = client.get(f"/v1/tune/{tune['id']}/events:list", params={"limit": 1000}).json()["data"]
    assert ended["status"] == "succeeded"
    attempts = [event["event"]["attempt"] for event in events if event["event"]["type"] == "status_changed"]
    assert max(attempts) == 1
    steps = [
        step["step"] for event in events if event["event"]["type"] == "metrics" for step in event["event"]["steps"]
    ]
    assert steps == sorted(set(steps))


def ended_after_restart(client: Client, tune_id: str) -> dict[str, Any]:
    """Watches across the gateway's absence, as a patient caller does."""
    while True:
        try:
            return client.ended(tune_id)
        except httpx.TransportError:
            continue


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killing_everything_at_ten_random_moments_loses_no_accepted_tune(tmp_path: Path, pictures: list[Path]) -> None:
    """Everything dies: whatever was accepted ends all the same."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    service = Service(tmp_path / "service", environment=SOON)
    accepted: list[str] = []

    for number in range(MOMENTS):
        service.start(wait=False)
        accepted += accepted_until(service, moments.uniform(1.0, LONGEST_LIFE), number, pictures[0])
        service.kill()

    assert accepted, "no tune was accepted: the test has shown nothing"
    with service, service.client() as client:
        ended = {tune_id: client.ended(tune_id)["status"] for tune_id in accepted}
    assert set(ended.values()) == {"succeeded"}, ended


def accepted_until(service: Service, life: float, number: int, picture: Path) -> list[str]:
    """Creates tunes until all is killed, `life` seconds from now; returns the ids of those that were accepted."""
    accepted: list[str] = []
    killer = threading.Timer(life, service.process.kill)
    killer.start()
    try:
        service.wait_ready()
        with service.client() as client:
            files = [client.upload(picture)]
            while True:
                # Two at a time, so that one is always in the queue when the end comes.
                accepted += [client.tune(f"life-{number}-{len(accepted) + n}", files, steps=10)["id"] for n in range(2)]
                client.ended(accepted[-2])
    except (httpx.TransportError, RuntimeError):
        return accepted  # the end has come, before the service was ready or in the midst of a call
    finally:
        killer.join()


def test_end_leaves_no_process_and_the_next_start_goes_on(tmp_path: Path, pictures: list[Path]) -> None:
    service = Service(tmp_path / "service")
    service.start()
    pids = [service.process.pid, *service.ready["pids"]["gateway"], *service.ready["pids"]["trainer"]]
    family = set(pids).union(*map(descendants, pids))
    key = service.ready["api_key"]
    with service.client() as client:
        tune = client.tune("goes-on", [client.upload(pictures[0])], steps=200)
        first_step(client, tune["id"])

    code = service.stop()

    assert code == 0, service.log()
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    with service, service.client() as client:
        assert service.ready["api_key"] == key
        assert client.ended(tune["id"])["status"] == "succeeded"


def test_second_up_on_a_folder_in_use_is_refused(service: Service) -> None:
    command = [sys.executable, "-m", "gateway.cli", "up", "--data", str(service.folder / "data")]

    second = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert second.returncode == 1
    assert f"is in use by another `tunesmith up` (pid {service.process.pid})" in second.stderr

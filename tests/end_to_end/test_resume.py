"""A tune goes on from its snapshot, in another process, to the file of the undisturbed one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.servers.gateway import Gateway
from tests.servers.processes import descendants
from tests.servers.service import Client, Service
from tests.servers.trainer import Trainer

STEPS = 120
OFTEN = {"snapshot_every_seconds": 0.2, "prior_preservation_weight": 0}
RARELY = {"snapshot_every_seconds": 3600, "prior_preservation_weight": 0}
FAKETIME = Path(__file__).parents[2] / ".venv/lib/libfaketime.so.1"  # scripts/tools puts it there
UNSHIFTED = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # a wrong wall clock runs as fast as a right one
LEASE = {"TUNESMITH_LEASE_SECONDS": "3", "TUNESMITH_HEARTBEAT_SECONDS": "0.5"}


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Service]:
    """A service of one test's own, with a lease short enough to wait for."""
    with Service(tmp_path / "service", environment=LEASE) as service:
        yield service


@pytest.fixture(scope="session")  # as the service: a worker may leave the module and come back to it
def expected(service: Service, pictures: list[Path]) -> str:
    """SHA-256 of the LoRA that nobody disturbed."""
    with service.client() as client:
        return lora(client, begun(client, pictures, "twin", **OFTEN))


def begun(client: Client, pictures: list[Path], name: str, **hyperparameters: float) -> str:
    """A new tune's id."""
    files = [client.upload(picture) for picture in pictures[:2]]
    tune = client.tune(name, files, steps=STEPS, hyperparameters=hyperparameters)
    return str(tune["id"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["engine", "trainer"])
def test_a_killed_tune_goes_on_from_its_snapshot_to_the_same_bytes(
    fragile: Service, pictures: list[Path], expected: str, victim: str
) -> None:
    """Engine child dies, whole trainer dies: another attempt, from the newest snapshot."""
    with fragile.client() as client:
        tune = begun(client, pictures, "killed", **OFTEN)
        stored(client, tune, 2)

        trainer = fragile.ready["pids"]["trainer"][0]
        os.kill(trainer if victim == "trainer" else engine_of(trainer), signal.SIGKILL)
        result = lora(client, tune)

        first, second = epochs(client, tune)
        snapshots = [event["event"]["step"] for event in log(client, tune) if event["event"]["type"] == "snapshot"]
    assert result == expected
    assert second[0] - 1 in snapshots
    assert first[: second[0] - 1] == [*range(1, second[0])]  # what the snapshot holds has been told
    assert first[-1] < STEPS
    assert second == [*range(second[0], STEPS + 1)]


@pytest.mark.slow
def test_a_trainer_told_to_end_leaves_a_snapshot_and_not_a_step_is_repeated(
    fragile: Service, pictures: list[Path], expected: str
) -> None:
    """Spot notice: a snapshot, and the tune is given back."""
    with fragile.client() as client:
        tune = begun(client, pictures, "left", **RARELY)
        until(client, tune, lambda event: bool(event["type"] == "metrics"))

        os.kill(fragile.ready["pids"]["trainer"][0], signal.SIGTERM)
        result = lora(client, tune)

        first, second = epochs(client, tune)
        attempts = [event["event"].get("attempt", 0) for event in log(client, tune)]
    assert result == expected
    assert [*first, *second] == [*range(1, STEPS + 1)]
    assert max(attempts) == 1  # given back: it costs no attempt


@pytest.mark.slow
def test_a_snapshot_with_a_flipped_byte_is_refused_and_the_one_before_it_used(
    fragile: Service, pictures: list[Path], expected: str
) -> None:
    """Damaged snapshot: the one before it is used."""
    with fragile.client() as client:
        tune = begun(client, pictures, "spoilt", **OFTEN)
        stored(client, tune, 2)
    fragile.kill()
    newest, before = kept(fragile.folder / "data", tune)
    body = bytearray(newest.read_bytes())
    body[len(body) // 2] ^= 1
    newest.write_bytes(body)

    with fragile, fragile.client() as client:
        result = lora(client, tune)

        _, second = epochs(client, tune)
        reasons = [event["event"].get("reason") for event in log(client, tune)]
    assert result == expected
    assert "SNAPSHOT_REFUSED" in reasons
    assert second[0] - 1 == before


@pytest.mark.slow
def test_trainers_whose_clocks_are_an_hour_off_lose_no_lease_and_resume_to_the_same_bytes(
    tmp_path: Path, pictures: list[Path], expected: str
) -> None:
    """Wrong clock: nobody compares a trainer's wall clock with anything."""
    ahead, behind = ({"LD_PRELOAD": str(FAKETIME), "FAKETIME": by} | UNSHIFTED for by in ("+3600", "-3600"))
    with Gateway(f"sqlite:///{tmp_path / 'tunesmith.db'}", tmp_path / "gateway", LEASE) as gateway:
        gateways, token = [gateway.ready["grpc"]], gateway.trainer_token
        with gateway.client() as client:
            tune = begun(client, pictures, "untimely", **OFTEN)
            with Trainer(gateways, token, tmp_path / "ahead", ahead) as first:
                stored(client, tune, 2)
                said = datetime.fromisoformat(first.log().split(maxsplit=1)[0])
                first.kill()
            with Trainer(gateways, token, tmp_path / "behind", behind):
                result = lora(client, tune)

            _, second = epochs(client, tune)
            attempts = [event["event"].get("attempt", 0) for event in log(client, tune)]
    assert 3500 < (said - datetime.now(UTC)).total_seconds() < 3700
    assert result == expected
    assert second[0] > 1
    assert max(attempts) == 2


def kept(data: Path, tune_id: str) -> tuple[Path, int]:
    """Where the newest snapshot lies, and the step of the one before it; of a service that does not run."""
    with contextlib.closing(sqlite3.connect(data / "tunesmith.db")) as database:
        query = "SELECT snapshot_key, earlier_snapshot FROM tunes WHERE id = ?"
        key, earlier = database.execute(query, (tune_id,)).fetchone()
    return data / "objects" / "objects" / key, json.loads(earlier)["step"]


def engine_of(trainer: int) -> int:
    """Its engine child."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in descendants(trainer)}
    return next(pid for pid, said in words.items() if b"trainer.engine" in said)


def lora(client: Client, tune_id: str) -> str:
    """SHA-256 of the file that came out."""
    ended = client.ended(tune_id)
    assert ended["status"] == "succeeded", ended
    return hashlib.sha256(client.download(ended["output_lora_ids"][0])).hexdigest()


def until(client: Client, tune_id: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Reads the tune's events up to a certain one."""
    events = client.events(tune_id)
    assert any(wanted(event["event"]) for event in events), "the tune ended before"
    events.close()


def stored(client: Client, tune_id: str, snapshots: int) -> None:
    """Waits until so many snapshots are stored."""
    seen = 0

    def wanted(event: dict[str, Any]) -> bool:
        nonlocal seen
        seen += 1 if event["type"] == "snapshot" else 0
        return seen == snapshots

    until(client, tune_id, wanted)


def log(client: Client, tune_id: str) -> list[dict[str, Any]]:
    """All of its events."""
    events: list[dict[str, Any]] = []
    while True:
        page = client.get(f"/v1/tune/{tune_id}/events:list", params={"limit": 1000, "after_id": len(events)}).json()
        events += page["data"]
        if not page["data"]:
            return events


def epochs(client: Client, tune_id: str) -> list[list[int]]:
    """The steps that were told, epoch by epoch."""
    told: dict[int, list[int]] = {}
    for event in log(client, tune_id):
        if event["event"]["type"] == "metrics":
            for step in event["event"]["steps"]:
                told.setdefault(step["epoch"], []).append(step["step"])
    return [told[epoch] for epoch in sorted(told)]

"""Callers that know nothing of our code: another language over gRPC, and Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.servers.service import Client, Service

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_node_client_creates_watches_and_cancels_tunes_by_reflection_alone(
    service: Service, client: Client, pictures: list[Path]
) -> None:
    arguments = [service.ready["grpc"], service.ready["api_key"], client.upload(pictures[0])]

    node = subprocess.run(
        ["node", "client.mjs", *arguments], cwd=HERE / "node", capture_output=True, text=True, timeout=120
    )

    assert node.returncode == 0, node.stderr
    said = json.loads(node.stdout)
    assert said["trained"]["status"] == "TUNE_STATUS_SUCCEEDED"
    assert len(said["trained"]["output_lora_ids"]) == 1
    assert said["trained"]["events"] > 3
    assert said["answered"] == said["cancelled"]["status"] == "TUNE_STATUS_CANCELLED"
    assert said["cancelled"]["events"] > 1
    assert said["refused"] == "NOT_FOUND"


@pytest.mark.parametrize("which", ["gateway", "trainer"])
def test_metrics_pass_promtool(service: Service, which: str) -> None:
    promtool = shutil.which("promtool") or ROOT / ".venv/bin/promtool"
    url = service.ready["metrics"] if which == "gateway" else next(iter(service.ready["trainer_metrics"].values()))
    exposition = httpx.get(url).text

    check = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, text=True, timeout=30)

    assert (check.returncode, check.stdout + check.stderr) == (0, "")
    assert exposition.count("# TYPE tunesmith_") > 5


def test_metrics_tell_what_an_operator_asks_at_night(service: Service, client: Client, pictures: list[Path]) -> None:
    client.ended(client.tune("measured", [client.upload(pictures[0])])["id"])

    exposition = httpx.get(service.ready["metrics"]).text

    names = {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}
    wanted = (
        "tunes",
        "queue_tunes",
        "queue_oldest_age_seconds",
        "dispatch_wait_seconds",
        "trainers_connected",
        "slots",
        "rpc_duration_seconds",
        "http_request_duration_seconds",
    )
    assert {f"tunesmith_{name}" for name in wanted} <= names
    assert service.ready["api_key"] not in exposition

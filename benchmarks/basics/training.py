"""Steps per second through the whole service, against a bare loop with the same model, LoRA, optimizer and cached
latents, in turn on the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.basics.spread import spread
from tests.servers.photographs import photographs
from tests.servers.service import DEVICE, Client, Service

WARM_UP = 20  # steps left out at the beginning: allocators and caches settle


def measure(quick: bool) -> dict[str, Any]:
    """Service and bare loop in pairs, at batch 1 and 4; the ratio is taken pair by pair."""
    pairs, steps = (2, 80) if quick else (5, 300)
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs(Path(folder))
        with Service(Path(folder) / "service") as service, service.client() as client:
            files = [client.upload(path) for path in pictures]
            return {f"batch_{batch}": _pairs(client, files, pictures, batch, steps, pairs) for batch in (1, 4)}


def _pairs(
    client: Client, files: list[str], pictures: list[Path], batch: int, steps: int, pairs: int
) -> dict[str, Any]:
    served, bare = [], []
    for number in range(pairs):
        served.append(_served(client, files, f"batch-{batch}-{number}", batch, steps))
        bare.append(_bare(pictures, batch, steps))
    return {
        "service_steps_per_second": spread(served),
        "bare_loop_steps_per_second": spread(bare),
        "ratio": spread([ours / theirs for ours, theirs in zip(served, bare, strict=True)]),
    }


def _served(client: Client, files: list[str], name: str, batch: int, steps: int) -> float:
    """Speed between two stored chunks of steps, by the database's clock."""
    # Without prior pictures, which the bare loop has not.
    like_the_bare_loop = {"batch_size": batch, "prior_preservation_weight": 0}
    tune = client.tune(name, files, steps=steps, hyperparameters=like_the_bare_loop)
    assert client.ended(tune["id"])["status"] == "succeeded"
    listed = client.get(f"/v1/tune/{tune['id']}/events:list", params={"limit": 1000}).json()["data"]
    chunks = [
        (event["event"]["steps"][-1]["step"], datetime.fromisoformat(event["created_at"]))
        for event in listed
        if event["event"]["type"] == "metrics"
    ]
    chunks = [chunk for chunk in chunks if chunk[0] >= WARM_UP]
    (first, started), (last, ended) = chunks[0], chunks[-1]
    speed: float = (last - first) / (ended - started).total_seconds()
    return speed


def _bare(pictures: list[Path], batch: int, steps: int) -> float:
    command = [
        sys.executable,
        "-m",
        "benchmarks.bare_loop",
        "--batch",
        str(batch),
        "--steps",
        str(steps),
        "--threads",
        "1",
        "--device",
        DEVICE,
    ]
    output = subprocess.run([*command, *map(str, pictures)], check=True, capture_output=True, text=True).stdout
    speed: float = json.loads(output)["steps_per_second"]
    return speed

"""What a checkpoint of several gigabytes costs the gateway that passes it on: its memory until the bytes are there and
until they are judged, hashed and moved, and how fast that goes.

Into a folder, and into S3 in parts. There the other end is a sink, which answers as S3 does and keeps nothing: moto's
server would hold all of it in memory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.servers.gateway import Gateway
from tests.servers.processes import memory_bytes, peak_bytes
from tests.servers.service import Client
from tests.servers.sink import sink

SIZE = 7 * 10**9  # bytes: SDXL in one file
CHUNK = 2**20  # bytes sent at once
ZEROS = bytes(CHUNK)
CHECKPOINT = {"asset_type": "checkpoint", "data_type": "fp16", "engine": "image/stable-diffusion-xl-v1-0"}
PATIENCE = 600.0  # seconds for one answer


@dataclass(frozen=True)
class BlankWeights:
    """A good safetensors file of one tensor, all zeros: it needs no disk."""

    tensor_bytes: int
    """An even number."""

    @property
    def header(self) -> bytes:
        """What comes before the zeros."""
        tensor = {"dtype": "F16", "shape": [self.tensor_bytes // 2], "data_offsets": [0, self.tensor_bytes]}
        text = json.dumps({"w": tensor}).encode()
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.tensor_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file."""
        yield self.header
        for start in range(0, self.tensor_bytes, CHUNK):
            yield ZEROS[: self.tensor_bytes - start]

    def sha256(self) -> str:
        """The file's, hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


def measure(quick: bool) -> dict[str, Any]:
    """The gateway's memory and the speed of an upload, for each store."""
    weights = BlankWeights(SIZE // 10 if quick else SIZE)
    with tempfile.TemporaryDirectory() as name, sink() as far_away:
        folder = Path(name)
        figures = {
            "folder": upload(weights, folder / "a", {}),
            "s3": upload(weights, folder / "b", far_away.environment_of()),
        }
        return {"size_mb": weights.size / 1e6, **figures, "the_sink_received_mb": far_away.received / 1e6}


def upload(weights: BlankWeights, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """One upload through one gateway."""
    with Gateway(f"sqlite:///{folder / 'bench.db'}", folder, environment) as gateway, gateway.client() as client:
        pid = gateway.process.pid
        before = memory_bytes(pid)
        started = time.monotonic()
        asset_id = put(client, weights)
        there, most_until_there = time.monotonic(), peak_bytes(pid)
        asset = completed(client, asset_id)
        ready, most_until_ready = time.monotonic(), peak_bytes(pid)
        assert (asset["status"], asset["size_bytes"]) == ("ready", weights.size), asset
        return {
            "memory_before_mb": round(before / 1e6, 1),
            "most_memory_until_there_mb": round(most_until_there / 1e6, 1),
            "most_memory_until_ready_mb": round(most_until_ready / 1e6, 1),
            "mb_a_second": round(weights.size / 1e6 / (there - started), 1),
            "completion_seconds": round(ready - there, 1),
        }


def put(client: Client, weights: BlankWeights) -> str:
    """Its bytes are there; the asset's id."""
    body = {"asset_type": "checkpoint", "name": "blank", "data": CHECKPOINT}
    created = client.post("/v1/assets", json=body).json()
    put_url = created["transfer_api"]["put_url"]
    assert put_url.startswith(str(client.base_url).rstrip("/"))
    response = httpx.put(put_url, content=weights.chunks(), timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return str(created["asset"]["id"])


def completed(client: Client, asset_id: str) -> dict[str, Any]:
    """The asset once it is judged. A gateway that takes long says so, and goes on; who asks again joins it."""
    status = 504
    while status == 504:
        answer = client.post(f"/v1/assets/{asset_id}/complete-upload", json={}, timeout=PATIENCE)
        status = answer.status_code
    assert status == 200, answer.text
    asset: dict[str, Any] = client.get(f"/v1/assets/{asset_id}").json()["asset"]
    return asset

"""Runs `tunesmith up` as a user would, and speaks to it over HTTP. Used by the end-to-end tests and the benchmarks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.servers.daemon import Daemon

DEVICE = os.environ.get("TUNESMITH_DEVICE", "cpu")  # where its engines compute


class Service(Daemon):
    """One `tunesmith up`, on free ports.

    Args:
        folder: Its --data is "data" below.
        trainers: How many.
        environment: Added to ours.
    """

    def __init__(self, folder: Path, *, trainers: int = 1, environment: Mapping[str, str] | None = None) -> None:
        free = "127.0.0.1:0"
        arguments = ["--data", str(folder / "data"), "--trainers", str(trainers), "--device", DEVICE]
        arguments += ["--http", free, "--grpc", free, "--metrics", free, "--ready-file", str(folder / "ready.json")]
        super().__init__(folder, ["-m", "gateway.cli", "up", *arguments], environment or {})
        self.folder = folder

    def client(self) -> Client:
        """An HTTP caller with the API key that `up` printed."""
        return Client(self.ready["http"], self.ready["api_key"])


class Client(httpx.Client):
    """An HTTP caller who does what curl would do, step by step."""

    def __init__(self, base_url: str, key: str) -> None:
        super().__init__(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def upload(self, path: Path, *, name: str | None = None) -> str:
        """Creates a file asset, puts the bytes, completes; returns the asset's id, whatever the verdict."""
        body = {"asset_type": "file", "name": name or path.stem, "data": {"asset_type": "file"}}
        created = self.post("/v1/assets", json=body)
        assert created.status_code == 200, created.text
        put = httpx.put(created.json()["transfer_api"]["put_url"], content=path.read_bytes(), timeout=60)
        assert put.is_success, put.text
        asset_id: str = created.json()["asset"]["id"]
        completed = self.post(f"/v1/assets/{asset_id}/complete-upload", json={})
        assert completed.status_code == 200, completed.text
        return asset_id

    def tune(self, name: str, files: Sequence[str], **details: Any) -> dict[str, Any]:
        """Creates a tune on tiny-shapes; `details` overrides its defaults. Returns the Tune."""
        response = self.post("/v1/tune", json=tune_request(name, files, **details))
        assert response.status_code == 201, response.text
        created: dict[str, Any] = response.json()
        return created

    def events(self, tune_id: str) -> Generator[dict[str, Any]]:
        """The tune's events as they come, those of the past first, until it has ended."""
        with self.stream("GET", f"/v1/tune/{tune_id}/events", headers={"Accept": "application/x-ndjson"}) as response:
            assert response.status_code == 200, response.read()
            # Empty lines keep the connection alive while nothing happens.
            yield from (json.loads(line) for line in response.iter_lines() if line)

    def ended(self, tune_id: str, *, limit: float = 240.0) -> dict[str, Any]:
        """Watches the tune until it has ended; returns it. The event stream ends with the tune: nothing is polled."""
        deadline = time.monotonic() + limit
        while True:
            for _ in self.events(tune_id):
                assert time.monotonic() < deadline, f"{tune_id} did not end within {limit} s"
            tune: dict[str, Any] = self.get(f"/v1/tune/{tune_id}").json()
            if tune["status"] in ("succeeded", "failed", "cancelled"):
                return tune

    def download(self, asset_id: str) -> bytes:
        """The bytes of an asset, by its signed URL."""
        transfer = self.get(f"/v1/assets/{asset_id}").json()["transfer_api"]
        assert transfer["type"] == "presigned-url"
        response = httpx.get(transfer["get_url"], timeout=60)
        assert response.status_code == 200, response.text
        return response.content


def tune_request(
    name: str, files: Sequence[str], *, continue_on_rejection: bool = False, **details: Any
) -> dict[str, Any]:
    """The body of POST /v1/tune for a short tune on tiny-shapes."""
    return {
        "name": name,
        "continue_on_rejection": continue_on_rejection,
        "details": {
            "tune_type": "lora_tune",
            "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
            "files": [{"file_id": file_id} for file_id in files],
            "steps": 20,
            "seed": 7,
            "trigger_words": ["sks"],
            **details,
        },
    }

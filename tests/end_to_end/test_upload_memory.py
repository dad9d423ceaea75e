"""The gateway's memory while weights come in, are judged, hashed and moved: it does not grow with them, whatever store
they go to. `scripts/bench basics --only uploads` does the same with 7 GB."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.basics.uploads import BlankWeights, completed, put
from store.objects.s3 import MOST_MEMORY
from tests.servers.gateway import Gateway
from tests.servers.processes import memory_bytes, peak_bytes
from tests.servers.sink import sink

WEIGHTS = BlankWeights(200 * 2**20)
SLACK = 40 * 2**20  # bytes: what a gateway takes with its first requests, of whatever kind


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_memory_stays_flat_while_weights_come_in_and_are_completed(store: str, tmp_path: Path) -> None:
    with sink() as far_away:
        settings = far_away.environment_of() if store == "s3" else {}
        with Gateway(f"sqlite:///{tmp_path / 'db'}", tmp_path, settings) as gateway, gateway.client() as client:
            before = memory_bytes(gateway.process.pid)

            asset = completed(client, put(client, WEIGHTS))

            grown = peak_bytes(gateway.process.pid) - before

    kept = [
        *far_away.objects,
        *(path.relative_to(tmp_path / "objects/objects").as_posix() for path in tmp_path.glob("objects/objects/*/*/*")),
    ]
    assert (asset["status"], asset["size_bytes"]) == ("ready", WEIGHTS.size)
    assert kept == [f"assets/{asset['id']}/{WEIGHTS.sha256()}"]
    assert grown < (MOST_MEMORY if store == "s3" else 0) + SLACK < WEIGHTS.size

"""What the processes cost: memory over 20 tunes, and the processor's time while nothing is asked of them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.basics.spread import spread
from tests.servers.photographs import photographs
from tests.servers.processes import children, cpu_seconds, memory_bytes
from tests.servers.service import Service

TUNES = 20


def measure(quick: bool) -> dict[str, Any]:
    """Engine memory after each of 20 tunes, and idle shares of a core."""
    tunes, idle = (4, 5.0) if quick else (TUNES, 30.0)
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs(Path(folder))
        with Service(Path(folder) / "service") as service, service.client() as client:
            files = [client.upload(path) for path in pictures]
            [supervisor] = service.ready["pids"]["trainer"]
            [gateway] = service.ready["pids"]["gateway"]
            [engine] = children(supervisor)
            memory = []
            for number in range(tunes):
                assert client.ended(client.tune(f"tune-{number}", files, steps=40)["id"])["status"] == "succeeded"
                memory.append(memory_bytes(engine) / 1e6)
            watched = {"gateway": gateway, "supervisor": supervisor, "engine": engine, "up": service.process.pid}
            return {
                "engine_memory_mb": spread(memory, 1),
                # After the second tune: the first fills the caches and the allocator's pools.
                "engine_growth_from_second_to_last": round(memory[-1] / memory[1] - 1, 4),
                "gateway_memory_mb": round(memory_bytes(gateway) / 1e6, 1),
                "supervisor_memory_mb": round(memory_bytes(supervisor) / 1e6, 1),
                "idle_share_of_a_core": _idle(watched, idle),
            }


def _idle(watched: dict[str, int], seconds: float) -> dict[str, float]:
    before = {name: cpu_seconds(pid) for name, pid in watched.items()}
    time.sleep(seconds)
    return {name: round((cpu_seconds(pid) - before[name]) / seconds, 4) for name, pid in watched.items()}

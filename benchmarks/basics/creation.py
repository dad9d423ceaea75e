"""Durable tunes a second: 16 callers against one gateway process, over gRPC and over HTTP, on each database. The
callers run in a process of their own, so that the gateway has a core."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from benchmarks.basics.spread import spread
from tests.servers.gateway import Gateway
from tests.servers.photographs import photographs
from tests.servers.postgres import PostgresServer
from tests.servers.processes import memory_bytes
from tests.servers.service import tune_request
from tunesmith.v1 import tune_pb2, tune_service_pb2, tune_service_pb2_grpc

CALLERS = 16


def measure(quick: bool) -> dict[str, Any]:
    """Creates per second by database and way in, and the gateway's memory after the last of 10,000 and more."""
    rounds, tunes = (2, 200) if quick else (5, 1000)
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as postgres:
        databases = {
            "sqlite": f"sqlite:///{folder}/bench.db",
            "postgresql": postgres.url_of(postgres.create_database()),
        }
        return {name: _on(url, Path(folder) / name, rounds, tunes) for name, url in databases.items()}


def _on(database_url: str, folder: Path, rounds: int, tunes: int) -> dict[str, Any]:
    with Gateway(database_url, folder) as gateway, gateway.client() as client:
        file_id = client.upload(photographs(folder)[0])
        before = memory_bytes(gateway.process.pid)
        ready = {**gateway.ready, "api_key": gateway.api_key}
        rates: dict[str, list[float]] = {"grpc": [], "http": []}
        for number in range(rounds):
            for way, seen in rates.items():
                seen.append(_callers(way, ready, file_id, tunes, f"{way}-{number}"))
        return {
            "grpc_per_second": spread(rates["grpc"], 1),
            "http_per_second": spread(rates["http"], 1),
            "http_over_grpc": spread([h / g for h, g in zip(rates["http"], rates["grpc"], strict=True)]),
            "tunes": 2 * rounds * tunes,
            "gateway_memory_mb_before": round(before / 1e6, 1),
            "gateway_memory_mb_after": round(memory_bytes(gateway.process.pid) / 1e6, 1),
        }


def _callers(way: str, ready: dict[str, Any], file_id: str, tunes: int, prefix: str) -> float:
    """Runs the callers in a process of their own; returns creates per second."""
    arguments = json.dumps({"ready": ready, "file_id": file_id, "tunes": tunes, "prefix": prefix, "way": way})
    command = [sys.executable, "-m", "benchmarks.basics.creation", arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def _call_all(way: str, ready: dict[str, Any], file_id: str, tunes: int, prefix: str) -> float:
    ways = {"grpc": _grpc_caller, "http": _http_caller}
    names = iter([f"{prefix}-{number}" for number in range(tunes)])
    started = time.perf_counter()
    await asyncio.gather(*(ways[way](ready, file_id, names) for _ in range(CALLERS)))
    return tunes / (time.perf_counter() - started)


async def _grpc_caller(ready: dict[str, Any], file_id: str, names: Iterator[str]) -> None:
    # A subchannel pool of its own: each caller has its own connection, as 16 services would.
    async with grpc.aio.insecure_channel(ready["grpc"], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = tune_service_pb2_grpc.TuneServiceStub(channel)
        metadata = (("authorization", f"Bearer {ready['api_key']}"),)
        for name in names:
            lora = tune_pb2.LoraTune(
                steps=20, seed=7, trigger_words=["sks"], files=[tune_pb2.LoraTuneFile(file_id=file_id)]
            )
            lora.base_checkpoint.checkpoint_id = "tunesmith:tiny-shapes"
            request = tune_service_pb2.CreateTuneRequest(name=name, details=tune_pb2.TuneDetails(lora_tune=lora))
            await stub.CreateTune(request, metadata=metadata)


async def _http_caller(ready: dict[str, Any], file_id: str, names: Iterator[str]) -> None:
    # Not httpx: it takes more time for a request than the gateway does, and so would be what is measured.
    headers = {"Authorization": f"Bearer {ready['api_key']}"}
    async with aiohttp.ClientSession(ready["http"], headers=headers) as client:
        for name in names:
            async with client.post("/v1/tune", json=tune_request(name, [file_id]), raise_for_status=True) as answer:
                await answer.read()


if __name__ == "__main__":
    print(asyncio.run(_call_all(**json.loads(sys.argv[1]))))

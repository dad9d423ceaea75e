"""The scene: a service with a tune under way, a trainer beside it that only beats, hostile load, and what is seen of
the gateway meanwhile. Called by the benchmark for a minute, and by a test for some seconds."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from benchmarks.hostile.attacks import Target
from benchmarks.hostile.beats import BeatingTrainer, Beats, token_of
from tests.servers.processes import children, memory_bytes
from tests.servers.service import Client, Service

LOOK = 0.5  # seconds between two looks at the gateway's memory
ENDLESS = 100_000  # steps: the tune runs for as long as it is looked at


@dataclass
class Seen:
    """What came of it."""

    load: dict[str, Any]
    """What benchmarks.hostile.load says."""
    beats: Beats
    quiet_beats: Beats
    """The same just before, without load."""
    memory: list[float]
    """The gateway's resident MB, look by look."""
    judges: list[float]
    """The largest of its judges, MB, look by look; 0 while there is none."""
    steps: tuple[int, int]
    """Of the tune that a real engine trains, before and after."""
    attempts: set[int]
    """That tune's."""

    def answers(self, least: int) -> int:
        """How many answers had such a status or a higher one."""
        return sum(
            number
            for statuses in self.load["statuses"].values()
            for status, number in statuses.items()
            if int(status) >= least
        )


async def play(service: Service, client: Client, picture: Path, *, rate: float, seconds: float, seed: int) -> Seen:
    """Plays it. The tunes are cancelled at its end."""
    file_id = await asyncio.to_thread(client.upload, picture)
    tune = await asyncio.to_thread(client.tune, f"trained-{seed}", [file_id], steps=ENDLESS)
    await asyncio.to_thread(_until_steps, client, tune["id"])
    token = await token_of(service.ready["database_url"])
    async with grpc.aio.insecure_channel(service.ready["grpc"]) as channel:
        trainer = BeatingTrainer(channel, token, period=0.1)
        held = await asyncio.to_thread(client.tune, f"held-{seed}", [file_id], steps=ENDLESS)
        try:
            await trainer.take()
            quiet = await _while(trainer, asyncio.sleep(min(seconds / 3, 10.0)))
            before = _steps(await asyncio.to_thread(_found, client, tune["id"]))
            memory: list[float] = []
            judges: list[float] = []
            [gateway] = service.ready["pids"]["gateway"]
            looking = asyncio.create_task(_look(gateway, memory, judges))
            trainer.beats = Beats()
            load: dict[str, Any] = {}
            await _while(trainer, _load(service, client, file_id, rate, seconds, seed, load))
            looking.cancel()
            after = _steps(await asyncio.to_thread(_found, client, tune["id"]))
            events = (await asyncio.to_thread(client.get, f"/v1/tune/{tune['id']}/events:list?limit=1000")).json()
            attempts = {e["event"]["attempt"] for e in events["data"] if e["event"]["type"] == "status_changed"} - {0}
            return Seen(load, trainer.beats, quiet, memory, judges, (before, after), attempts)
        finally:
            trainer.leave()
            for each in (tune, held):
                await asyncio.to_thread(client.post, f"/v1/tune/{each['id']}/cancel")


async def _while(trainer: BeatingTrainer, doing: Any) -> Beats:  # noqa: ANN401 - any coroutine
    """Beats until that is done."""
    done = asyncio.Event()
    beating = asyncio.create_task(trainer.beat(done))
    try:
        await doing
    finally:
        done.set()
        await beating
    return trainer.beats


async def _load(
    service: Service, client: Client, file_id: str, rate: float, seconds: float, seed: int, result: dict[str, Any]
) -> None:
    http, (host, port) = urlsplit(service.ready["http"]), service.ready["grpc"].rsplit(":", 1)
    told = {
        "addresses": {"http": [http.hostname, http.port], "grpc": [host, int(port)]},
        "target": asdict(Target(client.headers["authorization"].split()[1], file_id, _put_path(client))),
        "load": {"rate": rate, "seconds": seconds, "seed": seed},
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.hostile.load", json.dumps(told)), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, "the attackers fell over"
    result |= json.loads(output)


def _put_path(client: Client) -> str:
    body = {"asset_type": "file", "name": "never-whole", "data": {"asset_type": "file"}}
    put_url: str = client.post("/v1/assets", json=body).json()["transfer_api"]["put_url"]
    return put_url.removeprefix(str(client.base_url).rstrip("/"))


async def _look(gateway: int, memory: list[float], judges: list[float]) -> None:
    while True:
        memory.append(memory_bytes(gateway) / 1e6)
        judges.append(max(map(_memory_of_judge, children(gateway)), default=0.0))
        await asyncio.sleep(LOOK)


def _memory_of_judge(pid: int) -> float:
    try:
        return memory_bytes(pid) / 1e6
    except (OSError, ValueError):  # it has ended meanwhile
        return 0.0


def _until_steps(client: Client, tune_id: str) -> None:
    for event in client.events(tune_id):
        if event["event"]["type"] == "metrics":
            return
    raise RuntimeError("the tune has ended before its first step")


def _found(client: Client, tune_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/tune/{tune_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _steps(tune: dict[str, Any]) -> int:
    return int(tune["progress"]["step"])

"""The gateway as a process: it starts on an empty folder, serves on its addresses, and ends when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import SecretStr

from gateway.config import Address, ConfigError, Settings
from gateway.server import Server
from store import keys
from store.database import Database
from tunesmith.v1 import tune_pb2, tune_service_pb2, tune_service_pb2_grpc

START = 30.0  # seconds that a start may take on a busy machine


@dataclass
class Gateway:
    process: asyncio.subprocess.Process
    ready: dict[str, str]
    folder: Path

    async def ended(self) -> tuple[int, str]:
        """Exit code and what it wrote to standard error."""
        assert self.process.stderr is not None
        text = await self.process.stderr.read()
        return await self.process.wait(), text.decode()


def environment(folder: Path, **changes: str) -> dict[str, str]:
    settings = {
        "DATABASE_URL": f"sqlite:///{folder}/tunes.db",
        "OBJECTS_URL": (folder / "objects").as_uri(),
        "SIGNING_SECRET": "a secret of tests",
        "HTTP": "127.0.0.1:0",
        "GRPC": "127.0.0.1:0",
        "METRICS": "127.0.0.1:0",
        "READY_FILE": str(folder / "ready.json"),
        "LOG_FORMAT": "json",
        **changes,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNESMITH_")}
    return {**kept, **{f"TUNESMITH_{key}": value for key, value in settings.items()}}


async def spawned(folder: Path, **changes: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway"), env=environment(folder, **changes), stderr=subprocess.PIPE
    )


async def appeared(path: Path, process: asyncio.subprocess.Process) -> dict[str, str]:
    """The ready file's content; it is another process's, so that there is no event to wait for."""
    for _ in range(int(START / 0.02)):
        if content := content_of(path):
            return content
        assert process.returncode is None, "the gateway has ended before it was ready"
        await asyncio.sleep(0.02)
    raise AssertionError("the gateway is not ready")


def content_of(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    process = await spawned(tmp_path)
    yield Gateway(process, await appeared(tmp_path / "ready.json", process), tmp_path)
    if process.returncode is None:
        process.kill()
        await process.communicate()


def fetched(url: str, key: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        return answer.status, answer.read()


async def key_in(folder: Path) -> str:
    database = await Database.open(f"sqlite:///{folder}/tunes.db", wakeups=False)
    tenant = await keys.find_or_create_tenant(database, "acme")
    _, secret = await keys.create_key(database, tenant.id, "test")
    await database.close()
    return secret


async def test_gateway_serves_http_grpc_health_reflection_and_metrics(gateway: Gateway) -> None:
    secret = await key_in(gateway.folder)

    status, body = await asyncio.to_thread(fetched, gateway.ready["http"] + "/health")
    _, listed = await asyncio.to_thread(fetched, gateway.ready["http"] + "/v1/tunes", secret)
    _, assets = await asyncio.to_thread(fetched, gateway.ready["http"] + "/v1/assets?is_public=true", secret)
    _, metrics = await asyncio.to_thread(fetched, gateway.ready["metrics"])

    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert json.loads(listed) == {"data": [], "has_more": False, "total": 0}
    assert {asset["name"] for asset in json.loads(assets)["data"]} >= {"tiny-shapes"}
    assert b"tunesmith_build_info" in metrics
    async with grpc.aio.insecure_channel(gateway.ready["grpc"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tunesmith.v1.TuneService", "tunesmith.trainer.v1.TrainerService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stubs: Any = reflection_pb2_grpc  # its type stubs know no asynchronous channel
        reflecting = stubs.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflecting.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = {one.name for one in (await reflecting.read()).list_services_response.service}
        assert {"tunesmith.v1.TuneService", "tunesmith.v1.AssetService"} <= services
        reflecting.cancel()


async def test_sigterm_ends_watchers_and_the_process_soon_and_cleanly(gateway: Gateway) -> None:
    secret = await key_in(gateway.folder)
    status, answer = await asyncio.to_thread(uploaded_tune, gateway.ready["http"], secret)
    assert status == 201
    async with grpc.aio.insecure_channel(gateway.ready["grpc"]) as channel:
        tunes = tune_service_pb2_grpc.TuneServiceStub(channel)
        metadata = (("authorization", f"Bearer {secret}"),)
        watching = tunes.WatchTune(tune_service_pb2.WatchTuneRequest(id=answer["id"]), metadata=metadata)
        first = await anext(aiter(watching))
        started = time.monotonic()

        gateway.process.send_signal(signal.SIGTERM)
        code, log = await gateway.ended()

        assert first.event.status_changed.status == tune_pb2.TUNE_STATUS_PENDING
        assert await watching.code() == grpc.StatusCode.UNAVAILABLE
    assert code == 0, log
    assert time.monotonic() - started < 5
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"gateway_ready", "gateway_ended"} <= {line.get("action") for line in lines}
    assert [line for line in lines if line["level"] not in ("info", "debug")] == []
    assert "a secret of tests" not in log


def uploaded_tune(url: str, secret: str) -> tuple[int, dict[str, Any]]:
    """Makes a tune by HTTP, of a file that is still to be uploaded."""
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}

    def post(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)

    data = {"asset_type": "file", "file_format": "png"}
    _, made = post("/v1/assets", {"asset_type": "file", "name": "a.png", "data": data})
    details = {
        "tune_type": "lora_tune",
        "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
        "files": [{"file_id": made["asset"]["id"]}],
        "steps": 10,
        "trigger_words": ["sks"],
    }
    return post("/v1/tune", {"name": "mine", "details": details})


def cancelled(url: str, secret: str, tune_id: str) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    request = urllib.request.Request(f"{url}/v1/tune/{tune_id}/cancel", method="POST", headers=headers)
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["status"] == "cancelled"


async def test_second_start_on_the_same_folder_finds_the_tune(tmp_path: Path) -> None:
    process = await spawned(tmp_path)
    ready = await appeared(tmp_path / "ready.json", process)
    secret = await key_in(tmp_path)
    _, made = await asyncio.to_thread(uploaded_tune, ready["http"], secret)
    process.kill()
    await process.communicate()
    (tmp_path / "ready.json").unlink()

    process = await spawned(tmp_path)
    ready = await appeared(tmp_path / "ready.json", process)
    _, found = await asyncio.to_thread(fetched, f"{ready['http']}/v1/tune/{made['id']}", secret)

    assert json.loads(found)["name"] == "mine"
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed here")
async def test_promtool_finds_no_fault_in_a_living_gateways_metrics(gateway: Gateway) -> None:
    secret = await key_in(gateway.folder)
    _, made = await asyncio.to_thread(uploaded_tune, gateway.ready["http"], secret)
    await asyncio.to_thread(cancelled, gateway.ready["http"], secret, made["id"])

    _, metrics = await asyncio.to_thread(fetched, gateway.ready["metrics"])
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=metrics, capture_output=True
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert b'tunesmith_rpc_duration_seconds_count{code="OK"' in metrics
    assert b'tunesmith_http_request_duration_seconds_count{method="POST",route="/v1/tune",status="201"}' in metrics
    ended = b'tunesmith_tunes_ended_total{engine="image/stable-diffusion-v1-5",state="cancelled"} 1.0'
    assert ended in metrics


async def test_wrong_setting_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    process = await spawned(tmp_path, LEASE_SECONDS="soon")

    _, text = await process.communicate()

    assert process.returncode == 2
    assert text.decode().startswith("tunesmith-gateway: TUNESMITH_LEASE_SECONDS='soon': ")
    assert "Traceback" not in text.decode()


@pytest.mark.parametrize("key", ["HTTP", "GRPC", "METRICS"])
async def test_taken_port_ends_the_start_with_a_sentence(key: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await spawned(tmp_path, **{key: address})
        _, text = await process.communicate()

    assert process.returncode == 2
    assert f"TUNESMITH_{key}={address}: " in text.decode()
    assert "Traceback" not in text.decode()


async def test_all_taken_addresses_are_told_at_once_and_the_database_is_not_touched(tmp_path: Path) -> None:
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        http, grpc_, metrics = (Address("127.0.0.1", each.getsockname()[1]) for each in sockets)
        server = Server(
            Settings(
                database_url=SecretStr(f"sqlite:///{tmp_path}/tunes.db"),
                objects_url=SecretStr((tmp_path / "objects").as_uri()),
                signing_secret=SecretStr("a secret of tests"),
                http=http,
                grpc=grpc_,
                metrics=metrics,
            )
        )
        with pytest.raises(ConfigError) as caught:
            await server.startup()
        await server.shutdown()

    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        f"TUNESMITH_HTTP={http}",
        f"TUNESMITH_GRPC={grpc_}",
        f"TUNESMITH_METRICS={metrics}",
    ]
    assert not await asyncio.to_thread((tmp_path / "tunes.db").exists)


async def test_database_that_is_away_ends_the_start_with_a_code_of_its_own(tmp_path: Path) -> None:
    process = await spawned(tmp_path, DATABASE_URL="postgresql://u:hush@127.0.0.1:9/x")

    _, text = await process.communicate()

    said = text.decode()
    assert process.returncode == 1
    assert "tunesmith-gateway: the database is away: " in said
    assert not any(word in said for word in ("Traceback", "hush")), said


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("DATABASE_URL", "mysql://u:hush@h/x", "TUNESMITH_DATABASE_URL=(not shown): "),
        ("OBJECTS_URL", "file:///proc/objects", "TUNESMITH_OBJECTS_URL=(not shown): "),
        ("OBJECTS_URL", "s3://user:hush@bucket", "TUNESMITH_OBJECTS_URL=(not shown): wanted s3://BUCKET[/PREFIX]"),
        ("TLS_CERTIFICATE", "/gone.pem", "TUNESMITH_TLS_CERTIFICATE=/gone.pem: wanted TUNESMITH_TLS_KEY with it"),
        ("CATALOGUE", "/gone.toml", "TUNESMITH_CATALOGUE=/gone.toml: "),
    ],
)
async def test_what_cannot_be_opened_ends_the_start_with_a_sentence(
    key: str, value: str, wanted: str, tmp_path: Path
) -> None:
    process = await spawned(tmp_path, **{key: value})

    _, text = await process.communicate()

    last = text.decode().splitlines()
    assert process.returncode == 2
    assert wanted in text.decode()
    assert not any(word in text.decode() for word in ("Traceback", "hush")), last


async def test_misspelt_setting_is_told(tmp_path: Path) -> None:
    process = await spawned(tmp_path, GRACE_SECOND="1")
    await appeared(tmp_path / "ready.json", process)

    process.send_signal(signal.SIGTERM)
    _, text = await process.communicate()

    assert "TUNESMITH_GRACE_SECONDS" in text.decode()


async def test_messages_and_metadata_beyond_their_bounds_are_refused_over_grpc(gateway: Gateway) -> None:
    secret = await key_in(gateway.folder)
    key = ("authorization", f"Bearer {secret}")
    large = tune_service_pb2.ListTunesRequest(name="x" * (4 * 1024 * 1024))
    async with grpc.aio.insecure_channel(gateway.ready["grpc"]) as channel:
        tunes = tune_service_pb2_grpc.TuneServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as message:
            await tunes.ListTunes(large, metadata=(key,))
        with pytest.raises(grpc.aio.AioRpcError) as metadata:
            await tunes.ListTunes(tune_service_pb2.ListTunesRequest(), metadata=(key, ("x-pad", "x" * 20_000)))
        listed = await tunes.ListTunes(tune_service_pb2.ListTunesRequest(), metadata=(key,))

    assert message.value.code() is metadata.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert listed.total == 0

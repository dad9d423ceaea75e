"""A gateway and a trainer whose objects lie in S3: from the upload to the LoRA, and while S3 is away."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from safetensors.numpy import load

from gateway.sweeper import Sweeper
from store.database import Database
from store.objects.s3 import PART, S3Objects
from store.objects.signing import Signer
from tests.servers.gateway import Gateway
from tests.servers.moto import Moto
from tests.servers.proxy import Proxy
from tests.servers.service import Client
from tests.servers.trainer import Trainer

OFTEN = {"snapshot_every_seconds": 0.2, "prior_preservation_weight": 0}


@pytest.fixture(scope="module")
def network(moto: Moto) -> Iterator[Proxy]:
    """Between S3 and all who use it."""
    port = urlsplit(moto.url).port
    assert port is not None
    with Proxy([port]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def bucket(moto: Moto, network: Proxy) -> Iterator[S3Objects]:
    """A part of the bucket for these tests alone, as the gateway sees it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment_at(f"http://{network.address}").items():
            patch.setenv(name, value)
        yield S3Objects(moto.bucket, "end-to-end", Signer("http://unused", b"secret"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="module")
def database_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'tunesmith.db'}"


@pytest.fixture(scope="module")
def gateway(bucket: S3Objects, moto: Moto, database_url: str, folder: Path) -> Iterator[Gateway]:
    """On that bucket."""
    settings = {"TUNESMITH_OBJECTS_URL": f"s3://{moto.bucket}/{bucket.prefix}"}
    with Gateway(database_url, folder / "gateway", settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def trainer(gateway: Gateway, folder: Path) -> Iterator[Trainer]:
    """Connected to it."""
    with Trainer([gateway.ready["grpc"]], gateway.trainer_token, folder / "trainer") as trainer:
        yield trainer


def keys_of(bucket: S3Objects, *ids: str) -> list[str]:
    """Keys of all objects of these tunes and assets."""

    async def listed() -> list[str]:
        return sorted([key async for key, _ in bucket.list() if any(id in key for id in ids)])

    return asyncio.run(listed())


def events(client: Client, tune_id: str) -> list[dict[str, Any]]:
    page = client.get(f"/v1/tune/{tune_id}/events:list", params={"limit": 1000}).json()
    return [event["event"] for event in page["data"]]


@pytest.mark.slow
@pytest.mark.usefixtures("trainer")
def test_a_tune_from_upload_to_lora_leaves_in_s3_what_is_needed_and_no_more(
    gateway: Gateway, bucket: S3Objects, network: Proxy, database_url: str, pictures: list[Path]
) -> None:
    with gateway.client() as client:
        files = [client.upload(picture) for picture in pictures[:2]]
        rejected = client.upload(Path(__file__), name="no-picture")
        tune = client.ended(client.tune("in-s3", files, steps=40, hyperparameters=OFTEN)["id"])
        assert tune["status"] == "succeeded", tune
        [lora_id] = tune["output_lora_ids"]
        lora = client.download(lora_id)
        asset = client.get(f"/v1/assets/{lora_id}").json()
        kinds = [event["type"] for event in events(client, tune["id"])]
        verdict = client.get(f"/v1/assets/{rejected}").json()["asset"]["status"]
    asyncio.run(swept(database_url, bucket))

    digest = hashlib.sha256(lora).hexdigest()
    assert load(lora)
    assert urlsplit(asset["transfer_api"]["get_url"]).netloc == network.address, "straight from S3"
    assert asset["asset"]["size_bytes"] == len(lora)
    assert "snapshot" in kinds
    assert verdict == "rejected"
    wanted = [
        f"assets/{id}/{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for id, path in zip(files, pictures[:2], strict=True)
    ]
    assert keys_of(bucket, *files, rejected, tune["id"]) == sorted(
        [*wanted, f"loras/{tune['id']}/1/{digest}.safetensors"]
    )


@pytest.mark.slow
def test_s3_that_is_away_is_503_and_costs_a_tune_no_attempt(
    gateway: Gateway, trainer: Trainer, network: Proxy, pictures: list[Path]
) -> None:
    """Though the trainer meets it too, with its LoRA. It takes no snapshots: the gateway would be busy with the report
    of one, and sign no URL before it is verified.
    """
    with gateway.client() as client:
        file = client.upload(pictures[0])
        body = {"asset_type": "file", "name": "late", "data": {"asset_type": "file"}}
        late = client.post("/v1/assets", json=body).json()
        httpx.put(late["transfer_api"]["put_url"], content=pictures[1].read_bytes()).raise_for_status()
        tune = client.tune("outage", [file], steps=100, hyperparameters={"prior_preservation_weight": 0})
        watching = client.events(tune["id"])
        assert any(event["event"]["type"] == "metrics" for event in watching)

        said_before = len(trainer.log())
        with away_from(network):
            away = client.post(f"/v1/assets/{late['asset']['id']}/complete-upload", json={})
            until_said(trainer, "An upload failed and is tried again", said_before)
        back = client.post(f"/v1/assets/{late['asset']['id']}/complete-upload", json={})
        ended = client.ended(tune["id"])
        attempts = [event.get("attempt", 0) for event in events(client, tune["id"])]

    assert (away.status_code, away.json()["reason"]) == (503, "OBJECTS_AWAY")
    assert away.headers["retry-after"] == "2"
    assert back.json() == {"error": None}
    assert ended["status"] == "succeeded"
    assert max(attempts) == 1


def test_a_picture_is_put_to_the_gateway_of_whatever_length_it_is(
    gateway: Gateway, bucket: S3Objects, pictures: list[Path]
) -> None:
    """As the octoai SDK streams a file. One that is cut off is not there to be completed."""
    body = {"asset_type": "file", "name": "streamed", "data": {"asset_type": "file"}}
    content = pictures[0].read_bytes()

    def broken_off() -> Iterator[bytes]:
        yield content[:1000]
        raise ConnectionAbortedError

    with gateway.client() as client:
        created = client.post("/v1/assets", json=body).json()
        put_url, path = created["transfer_api"]["put_url"], f"/v1/assets/{created['asset']['id']}"
        with pytest.raises(ConnectionAbortedError):
            httpx.put(put_url, content=broken_off())
        early = client.post(f"{path}/complete-upload", json={})
        put = httpx.put(put_url, content=(content[start : start + 1000] for start in range(0, len(content), 1000)))
        completed = client.post(f"{path}/complete-upload", json={})
        ready = client.get(path).json()

    assert put_url.startswith(gateway.ready["http"])
    assert (early.status_code, early.json()["reason"]) == (400, "NOTHING_UPLOADED")
    assert (put.status_code, completed.status_code) == (200, 200)
    assert (ready["asset"]["status"], ready["asset"]["size_bytes"]) == ("ready", len(content))
    assert not ready["transfer_api"]["get_url"].startswith(gateway.ready["http"]), "downloads are S3's"
    assert keys_of(bucket, ready["asset"]["id"]) == [
        f"assets/{ready['asset']['id']}/{hashlib.sha256(content).hexdigest()}"
    ]


def test_weights_go_through_the_gateway_into_s3_in_parts(gateway: Gateway, bucket: S3Objects, moto: Moto) -> None:
    header = json.dumps({"w": {"dtype": "F16", "shape": [PART // 2], "data_offsets": [0, PART]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(PART)
    body = {
        "asset_type": "lora",
        "name": "mine",
        "data": {"asset_type": "lora", "engine": "image/stable-diffusion-v1-5"},
    }
    with gateway.client() as client:
        created = client.post("/v1/assets", json=body).json()
        put_url = created["transfer_api"]["put_url"]

        put = httpx.put(put_url, content=weights, timeout=60)
        completed = client.post(f"/v1/assets/{created['asset']['id']}/complete-upload", json={})
        ready = client.get(f"/v1/assets/{created['asset']['id']}").json()["asset"]
        direct = httpx.get(put_url, timeout=60)

    assert put_url.startswith(gateway.ready["http"])
    assert (put.status_code, completed.status_code) == (200, 200)
    assert (ready["status"], ready["size_bytes"], ready["data"]["data_type"]) == ("ready", len(weights), "fp16")
    assert keys_of(bucket, ready["id"]) == [f"assets/{ready['id']}/{hashlib.sha256(weights).hexdigest()}"]
    assert direct.status_code == 405, "downloads are S3's"
    assert moto.uploads_under_way() == 0


def test_several_uploads_at_once_keep_their_bytes_apart(gateway: Gateway, bucket: S3Objects, moto: Moto) -> None:
    body = {"asset_type": "file", "name": "one-of-several", "data": {"asset_type": "file"}}
    contents = [bytes([number]) * (PART + number) for number in range(4)]
    with gateway.client() as client:
        made = [client.post("/v1/assets", json=body).json() for _ in contents]

        async def put_all() -> list[int]:
            async with httpx.AsyncClient(timeout=60) as puts:
                urls = [each["transfer_api"]["put_url"] for each in made]
                answers = await asyncio.gather(
                    *map(lambda url, content: puts.put(url, content=content), urls, contents)
                )
            return [answer.status_code for answer in answers]

        statuses = asyncio.run(put_all())

    async def hashes() -> list[tuple[str, int]]:
        return [await bucket.hash(f"incoming/assets/{each['asset']['id']}") for each in made]

    assert statuses == [200] * 4
    assert asyncio.run(hashes()) == [(hashlib.sha256(content).hexdigest(), len(content)) for content in contents]
    assert moto.uploads_under_way() == 0


@contextmanager
def away_from(network: Proxy) -> Iterator[None]:
    """Meanwhile nobody is served; whatever happens, those who come afterwards are."""
    network.refuse()
    try:
        yield
    finally:
        network.heal()


def until_said(trainer: Trainer, sentence: str, since: int) -> None:
    """Waits for a line of its log: it tells of itself in no other way."""
    deadline = time.monotonic() + 60
    while sentence not in trainer.log()[since:]:
        assert time.monotonic() < deadline, f"not said: {sentence}"
        time.sleep(0.05)


async def swept(database_url: str, bucket: S3Objects) -> None:
    database = await Database.open(database_url, wakeups=False)
    try:
        await Sweeper(database, bucket, leftover_seconds=0, upload_seconds=86_400).sweep()
    finally:
        await database.close()


def test_a_bucket_that_is_not_there_ends_the_start(moto: Moto, tmp_path: Path) -> None:
    settings = {**moto.environment_of(), "TUNESMITH_OBJECTS_URL": "s3://no-such-bucket"}
    gateway = Gateway(f"sqlite:///{tmp_path / 'tunesmith.db'}", tmp_path, settings)

    with pytest.raises(RuntimeError, match=r"exit code 2") as raised:
        gateway.start()

    assert "TUNESMITH_OBJECTS_URL=(not shown): s3://no-such-bucket/" in str(raised.value)
    assert "answers 404 Not Found" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_a_gateway_starts_while_s3_is_away(tmp_path: Path) -> None:
    """Nobody needs to start it anew when S3 comes back."""
    settings = {**Moto.environment_at("http://127.0.0.1:9"), "TUNESMITH_OBJECTS_URL": "s3://bucket"}

    with Gateway(f"sqlite:///{tmp_path / 'tunesmith.db'}", tmp_path, settings) as gateway, gateway.client() as client:
        health = client.get("/health")

    assert health.status_code == 200
    assert "s3://bucket/ at http://127.0.0.1:9 does not answer" in gateway.log()

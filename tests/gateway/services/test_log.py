"""What a gateway writes to its log, of everything that it is asked: no key, no token, no signed URL, at any level."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import pytest

from tests.servers.gateway import Gateway
from tests.servers.service import Client
from tunesmith.trainer.v1 import trainer_service_pb2 as stream
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from tunesmith.v1 import asset_service_pb2, asset_service_pb2_grpc, tune_service_pb2, tune_service_pb2_grpc

WRONG = "ts_wrong-and-secret-all-the-same-0123456789abcdef"


def test_no_key_and_no_signed_url_is_ever_logged(tmp_path: Path, sqlite_url: str) -> None:
    picture = tmp_path / "not-a-picture.png"
    picture.write_bytes(b"this is no picture")
    with Gateway(sqlite_url, tmp_path, {"TUNESMITH_LOG_LEVEL": "debug"}) as gateway, gateway.client() as client:
        urls = signed_urls(client, picture)
        refusals(client)
        asyncio.run(over_grpc(gateway.ready["grpc"], gateway.api_key, gateway.trainer_token))
        secrets = [gateway.api_key, gateway.trainer_token, WRONG, "5e" * 32]
        gateway.stop()
        log = gateway.log()

    signatures = [parse_qs(urlsplit(url).query)["signature"][0] for url in urls]
    assert len(signatures) >= 4
    for action in ("http.answered", "asset_rejected", "gateway_ended"):
        assert action in log, "the log does not tell of what was done"
    assert "NOT_A_PICTURE" in log
    for secret in (*secrets, *signatures):
        assert secret not in log
        assert secret[3:] not in log
    assert re.findall(r"signature=|expires=|[Bb]earer [A-Za-z0-9]", log) == []


def test_lines_bear_the_trace_of_their_request(tmp_path: Path, sqlite_url: str) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    with Gateway(sqlite_url, tmp_path, {"TUNESMITH_LOG_LEVEL": "debug"}) as gateway, gateway.client() as client:
        client.get("/v1/tunes", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}).raise_for_status()
        client.get("/v1/assets", headers={"traceparent": "00-nonsense"}).raise_for_status()
        gateway.stop()
        answered = [line for line in gateway.log().splitlines() if "http.answered" in line]

    assert [trace in line for line in answered if "/v1/" in line] == [True, False]
    assert "nonsense" not in "".join(answered)


def signed_urls(client: Client, picture: Path) -> list[str]:
    """Uploads what is refused, and asks for what is there; answers every URL that was signed, and used."""
    body = {"asset_type": "file", "name": "a", "data": {"asset_type": "file"}}
    put_url: str = client.post("/v1/assets", json=body).json()["transfer_api"]["put_url"]
    assert httpx.put(put_url, content=b"x").status_code == 200
    client.upload(picture)
    body = {"asset_type": "lora", "name": "l", "data": {"asset_type": "lora", "engine": "image/e"}}
    made = client.post("/v1/assets", json=body).json()
    assert httpx.put(made["transfer_api"]["put_url"], content=b"weights").status_code == 200
    path = f"/v1/assets/{made['asset']['id']}"
    client.post(f"{path}/complete-upload", json={"skip_validation": True}).raise_for_status()
    get_url: str = client.get(path).json()["transfer_api"]["get_url"]
    assert httpx.get(get_url).content == b"weights"
    wrong_verb, forged = httpx.put(get_url, content=b"x"), httpx.get(get_url[:-4] + "AAAA")
    assert (wrong_verb.status_code, forged.status_code) == (403, 403)
    assert httpx.get(get_url, headers={"range": "bytes=999-"}).status_code == 416
    return [put_url, made["transfer_api"]["put_url"], get_url, get_url[:-4] + "AAAA"]


def refusals(client: Client) -> None:
    """Asks what is refused, with keys where nobody would look for them."""
    key = client.headers["authorization"].split()[1]
    assert client.get("/v1/tunes", headers={"Authorization": f"Bearer {WRONG}"}).status_code == 401
    assert client.get(f"/v1/tunes?key={key}&access_token={key}").status_code == 200
    assert client.post("/v1/tune", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    assert client.post("/v1/tune", json={"name": key, "details": {"steps": key}}).status_code == 422
    assert client.get("/nothing", headers={"X-Request-Id": f"{key} {key}"}).status_code == 404
    assert client.get("/v1/tunes", headers={"Authorization": f"Bearer {key}x"}).status_code == 401


async def over_grpc(address: str, key: str, token: str) -> None:
    """The same over gRPC: good and bad secrets, on both services' doors."""
    async with grpc.aio.insecure_channel(address) as channel:
        tunes: Any = tune_service_pb2_grpc.TuneServiceStub(channel)
        assets: Any = asset_service_pb2_grpc.AssetServiceStub(channel)
        for secret in (key, WRONG, token):
            metadata = (("authorization", f"Bearer {secret}"),)
            await asyncio.gather(
                tunes.GetTune(tune_service_pb2.GetTuneRequest(id="nothing"), metadata=metadata),
                tunes.CreateTune(tune_service_pb2.CreateTuneRequest(name=".."), metadata=metadata),
                assets.CompleteUpload(asset_service_pb2.CompleteUploadRequest(id="nothing"), metadata=metadata),
                return_exceptions=True,
            )
            call: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel).Connect(metadata=metadata)
            with contextlib.suppress(grpc.aio.AioRpcError):  # refused before it could write
                await call.write(stream.TrainerMessage(draining=stream.Draining()))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert secret not in str(refused.value)

"""HTTP and gRPC over TLS: what a gateway shows, whom it lets in, what it says of files that are wrong."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.certificates import Certificates
from gateway.config import ConfigError
from tests.servers.certificates import Authority
from tests.servers.gateway import Gateway
from tests.servers.service import Client
from trainer.supervisor.supervisor import authorities
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def gateway(authority: Authority, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Gateway]:
    """One with TLS on HTTP, and mutual TLS on gRPC."""
    folder, pair = tmp_path_factory.mktemp("gateway"), authority.sign("localhost")
    shutil.copy(sqlite_template, folder / "tunes.db")
    shutil.copy(authority.certificate, folder / "ca.pem")
    environment = {"TUNESMITH_TLS_CLIENT_CA": str(folder / "ca.pem")}
    for setting in ("TLS", "HTTP_TLS"):
        environment[f"TUNESMITH_{setting}_CERTIFICATE"] = str(shutil.copy(pair.certificate, folder / f"{setting}.pem"))
        environment[f"TUNESMITH_{setting}_KEY"] = str(shutil.copy(pair.key, folder / f"{setting}.key"))
    with Gateway(f"sqlite:///{folder}/tunes.db", folder, environment) as gateway:
        yield gateway


def test_http_is_served_over_tls_and_signed_urls_say_so(gateway: Gateway, authority: Authority) -> None:
    trusting = authorities(authority.certificate)  # as a trainer does

    with httpx.Client(verify=trusting) as client:
        key = {"Authorization": f"Bearer {gateway.api_key}"}
        body = {"asset_type": "file", "name": "a", "data": {"asset_type": "file"}}
        made = client.post(f"{gateway.ready['http']}/v1/assets", json=body, headers=key).json()
        put = client.put(made["transfer_api"]["put_url"], content=b"x")

    assert gateway.ready["http"].startswith("https://")
    assert made["transfer_api"]["put_url"].startswith(gateway.ready["http"])
    assert put.status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        Client(gateway.ready["http"], gateway.api_key).get("/health")
    with pytest.raises(httpx.TransportError):
        httpx.get(gateway.ready["http"].replace("https", "http") + "/health")


async def test_mutual_tls_wants_a_certificate_and_names_the_trainer_by_it(
    gateway: Gateway, authority: Authority, tmp_path: Path
) -> None:
    address = gateway.ready["grpc"]
    known, foreign = authority.sign("trainer-1"), Authority(tmp_path / "foreign").sign("trainer-1")

    def credentials(*pair: Path) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*(path.read_bytes() for path in (authority.certificate, *pair)))

    async with grpc.aio.secure_channel(address, credentials(known.key, known.certificate)) as channel:
        connect: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel).Connect()
        hello = trainer_service_pb2.Hello(
            trainer_id="trainer-1", boot_id="b", session_id="s", engines=["image/e"], slots=1
        )
        await connect.write(trainer_service_pb2.TrainerMessage(hello=hello))
        answer = await connect.read()
        connect.cancel()
    codes = []
    for stranger in (credentials(), credentials(foreign.key, foreign.certificate)):
        async with grpc.aio.secure_channel(address, stranger) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=20)
            codes.append(refused.value.code())

    assert answer.HasField("welcome")
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2


async def test_a_renewed_certificate_is_shown_without_a_restart_and_half_a_one_is_not(
    gateway: Gateway, authority: Authority
) -> None:
    folder = gateway.ready_file.parent
    ports = {"HTTP_TLS": urlsplit(gateway.ready["http"]).port, "TLS": urlsplit(f"//{gateway.ready['grpc']}").port}
    renewed = authority.sign("renewed")

    async def shown(setting: str) -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", ports[setting] or 0))

    for setting in ports:
        before = await shown(setting)
        shutil.copy(renewed.certificate, folder / f"{setting}.pem")  # and not its key yet
        assert await shown(setting) == before
        shutil.copy(renewed.key, folder / f"{setting}.key")
        after = await shown(setting)

        assert after != before
        assert after.split() == renewed.certificate.read_text().split()
    assert gateway.log().count("certificate_renewed") == 2
    assert gateway.log().count("certificate_stays") == 2


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "a.pem").unlink(), "_TLS_CERTIFICATE={folder}/a.pem: No such file"),
        (lambda folder: (folder / "a.key").unlink(), "_TLS_KEY={folder}/a.key: No such file"),
        (lambda folder: (folder / "a.pem").write_text("none"), "wanted a PEM certificate and its own key"),
        (lambda folder: shutil.copy(folder / "b.key", folder / "a.key"), "wanted a PEM certificate and its own key"),
        (lambda folder: (folder / "ca.pem").unlink(), "_TLS_CLIENT_CA={folder}/ca.pem: No such file"),
        (lambda folder: (folder / "ca.pem").write_text("none"), "_TLS_CLIENT_CA={folder}/ca.pem: wanted PEM"),
    ],
    ids=["no certificate", "no key", "no PEM", "another's key", "no authority", "no PEM authority"],
)
def test_a_wrong_file_is_named_by_its_setting(
    break_it: Callable[[Path], object], said: str, authority: Authority, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        pair = authority.sign(name)
        shutil.copy(pair.certificate, tmp_path / f"{name}.pem")
        shutil.copy(pair.key, tmp_path / f"{name}.key")
    shutil.copy(authority.certificate, tmp_path / "ca.pem")
    files = (tmp_path / "a.pem", tmp_path / "a.key", tmp_path / "ca.pem")
    Certificates("TLS", *files)

    break_it(tmp_path)

    with pytest.raises(ConfigError) as caught:
        Certificates("TLS", *files)
    assert said.format(folder=tmp_path) in str(caught.value)


def test_a_gateway_tells_every_file_that_it_cannot_read_and_does_not_start(tmp_path: Path, sqlite_url: str) -> None:
    files = ("CATALOGUE", "TLS_CERTIFICATE", "TLS_KEY", "HTTP_TLS_CERTIFICATE", "HTTP_TLS_KEY")
    names = {f"TUNESMITH_{name}": f"/gone/{name}" for name in files}

    with pytest.raises(RuntimeError, match=r"exit code 2") as caught:
        Gateway(sqlite_url, tmp_path, names).start()

    assert [name for name in names if f"{name}={names[name]}: " in str(caught.value)] == list(names)

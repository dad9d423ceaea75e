"""A real gRPC server on loopback with the caller services, on each real database and a real folder of objects."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway import catalogue, interceptors
from gateway.assets import AssetService
from gateway.judges import Judges
from gateway.metrics import Metrics
from gateway.pictures import Limits
from gateway.status import received
from gateway.tunes import TuneService
from gateway.uploads import Uploads, incoming_key
from gateway.watch import Watch
from store import keys
from store.database import Database
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from tunesmith.v1 import (
    asset_pb2,
    asset_service_pb2,
    asset_service_pb2_grpc,
    tune_pb2,
    tune_service_pb2,
    tune_service_pb2_grpc,
)

CHECKPOINT = "tunesmith:tiny-shapes"
MAX_WEIGHTS = 100_000  # bytes


@dataclass
class Refused:
    """What a refused call's status says."""

    code: grpc.StatusCode
    reason: str
    violations: dict[str, str] = field(default_factory=dict)  # field -> description
    message: str = ""


@dataclass
class Tenant:
    """One tenant's view of the service."""

    id: str
    tunes: tune_service_pb2_grpc.TuneServiceAsyncStub
    assets: asset_service_pb2_grpc.AssetServiceAsyncStub
    service: Service

    async def upload(self, content: bytes, *, name: str = "picture.png") -> asset_pb2.Asset:
        """Makes a file asset, puts its bytes where the PUT would, and completes it."""
        created = await self.assets.CreateAsset(file_request(name))
        await self.service.put(created.asset.id, content)
        await self.assets.CompleteUpload(asset_service_pb2.CompleteUploadRequest(id=created.asset.id))
        return (await self.assets.GetAsset(asset_service_pb2.GetAssetRequest(id=created.asset.id))).asset

    async def create_tune(self, name: str = "tune", **changes: Any) -> tune_pb2.Tune:
        """A tune of one good picture."""
        picture = await self.upload(png())
        return await self.tunes.CreateTune(tune_request([picture.id], name=name, **changes))


@dataclass
class Service:
    """The server and what it stands on."""

    database: Database
    objects: LocalObjects
    signer: Signer
    watch: Watch
    judges: Judges
    uploads: Uploads
    address: str

    async def tenant(self, name: str, *, is_operator: bool = False) -> Tenant:
        """A tenant with a key, and a channel that shows it."""
        made = await keys.create_tenant(self.database, name, is_operator=is_operator)
        _, secret = await keys.create_key(self.database, made.id, "test")
        channel = keyed(self.address, secret)
        tunes = tune_service_pb2_grpc.TuneServiceStub(channel)
        return Tenant(made.id, tunes, asset_service_pb2_grpc.AssetServiceStub(channel), self)

    async def put(self, asset_id: str, content: bytes) -> None:
        """Stands for the PUT on the signed URL."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        await self.objects.write(incoming_key(asset_id), chunks())


def keyed(address: str, secret: str) -> grpc.aio.Channel:
    """A channel on which each call bears the key."""
    return grpc.aio.insecure_channel(address, interceptors=[_Unary(secret), _Stream(secret)])


class _Key:
    def __init__(self, secret: str) -> None:
        self._pair = ("authorization", f"Bearer {secret}")

    async def _with(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._pair)
        return await continuation(details._replace(metadata=metadata), request)


class _Unary(_Key, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._with(continuation, client_call_details, request)


class _Stream(_Key, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._with(continuation, client_call_details, request)


@pytest.fixture
async def service(database: Database, tmp_path: Path) -> AsyncIterator[Service]:
    await catalogue.publish(database, catalogue.gather(None))
    signer = Signer("http://gateway.example", b"a secret of tests")
    objects = LocalObjects(tmp_path / "objects", signer)
    judges = Judges(Limits(size_bytes=200_000), workers=1)
    watch = Watch(database)
    uploads = Uploads(
        database, objects, judges, Metrics("test"), max_picture_bytes=200_000, max_weights_bytes=MAX_WEIGHTS
    )
    chain = interceptors.chain(
        authenticate=partial(keys.authenticate, database),
        authenticate_trainer=partial(keys.authenticate_trainer, database),
    )
    server = grpc.aio.server(interceptors=chain, options=[("grpc.so_reuseport", 0)])
    tune_service_pb2_grpc.add_TuneServiceServicer_to_server(TuneService(database, watch), server)
    asset_service_pb2_grpc.add_AssetServiceServicer_to_server(AssetService(database, objects, uploads), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    watching = asyncio.create_task(watch.run())
    yield Service(database, objects, signer, watch, judges, uploads, f"127.0.0.1:{port}")
    watch.close()
    await server.stop(1)
    watching.cancel()
    await judges.close()


@pytest.fixture
async def tenant(service: Service) -> Tenant:
    return await service.tenant("acme")


@pytest.fixture
async def other(service: Service) -> Tenant:
    return await service.tenant("other")


def png(colour: str = "teal", size: tuple[int, int] = (64, 64)) -> bytes:
    """A small sound picture."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def file_request(name: str = "picture.png") -> asset_service_pb2.CreateAssetRequest:
    """Asks for a file asset."""
    data = asset_pb2.AssetData(file=asset_pb2.FileData(file_format=asset_pb2.FILE_EXTENSION_PNG))
    return asset_service_pb2.CreateAssetRequest(asset_type=asset_pb2.ASSET_TYPE_FILE, name=name, data=data)


def tune_request(
    file_ids: list[str], *, name: str = "tune", checkpoint: str = CHECKPOINT, steps: int = 10, **changes: Any
) -> tune_service_pb2.CreateTuneRequest:
    """Asks for a tune."""
    lora_tune = tune_pb2.LoraTune(
        base_checkpoint=tune_pb2.LoraTuneCheckpoint(checkpoint_id=checkpoint),
        files=[tune_pb2.LoraTuneFile(file_id=one) for one in file_ids],
        steps=steps,
        trigger_words=["sks"],
    )
    details = tune_pb2.TuneDetails(lora_tune=lora_tune)
    return tune_service_pb2.CreateTuneRequest(name=name, details=details, **changes)


async def refused(call: Awaitable[Any]) -> Refused:
    """What a call is refused with; fails where it is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    told = received(error.code(), error.details(), error.trailing_metadata())
    return Refused(told.code, told.reason, {one.field: one.description for one in told.violations}, told.message)


@dataclass(frozen=True)
class Requests:
    """What tests ask with; handed out by a fixture, since tests import nothing from one another."""

    png: Callable[..., bytes] = png
    file: Callable[..., asset_service_pb2.CreateAssetRequest] = file_request
    tune: Callable[..., tune_service_pb2.CreateTuneRequest] = tune_request
    refused: Callable[[Awaitable[Any]], Awaitable[Refused]] = refused
    keyed: Callable[[str, str], grpc.aio.Channel] = keyed


@pytest.fixture
def ask() -> Requests:
    return Requests()

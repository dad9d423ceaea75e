"""What a put_url still opens once its asset waits for bytes no more: over HTTP, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from gateway.http.app import build
from store import assets
from store.errors import DatabaseAway
from store.fetches import NewFetch, claim, fail, order
from tunesmith.v1 import asset_pb2, asset_service_pb2


@pytest.fixture
async def http(service: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway's side of signed URLs alone."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        app = build(channel, [], objects=(service.objects, service.signer), check_put=service.uploads.check_put)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            yield client


async def completed(tenant: Any, created: Any) -> asset_pb2.Asset:
    """Completes it, as clients do whatever came of their PUT."""
    await tenant.assets.CompleteUpload(asset_service_pb2.CompleteUploadRequest(id=created.asset.id))
    found = await tenant.assets.GetAsset(asset_service_pb2.GetAssetRequest(id=created.asset.id))
    asset: asset_pb2.Asset = found.asset
    return asset


@pytest.mark.parametrize(("first", "verdict"), [(b"junk", "rejected"), (None, "ready")])
async def test_put_after_the_verdict_is_told_that_it_is_final(
    tenant: Any, http: httpx.AsyncClient, service: Any, ask: Any, first: bytes | None, verdict: str
) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    put_url = created.transfer_api.presigned_url.put_url
    taken = [await http.put(put_url, content=content) for content in (b"begun again", first or ask.png())]
    before = await completed(tenant, created)

    late = await http.put(put_url, content=ask.png("red"))
    after = await completed(tenant, created)

    assert [answer.status_code for answer in taken] == [200, 200]
    assert (late.status_code, late.json()["reason"]) == (400, "STATE_FORBIDS")
    assert f"{created.asset.id} is {verdict}" in late.json()["detail"]
    assert "create a new asset" in late.json()["detail"]
    assert (asset_pb2.AssetStatus.Name(after.status), after) == (f"ASSET_STATUS_{verdict.upper()}", before)
    assert [key async for key, _ in service.objects.list("incoming/")] == []


async def test_put_for_a_deleted_asset_is_refused(tenant: Any, http: httpx.AsyncClient, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    await tenant.assets.DeleteAsset(asset_service_pb2.DeleteAssetRequest(id=created.asset.id))

    late = await http.put(created.transfer_api.presigned_url.put_url, content=ask.png())

    assert (late.status_code, late.json()["reason"]) == (400, "STATE_FORBIDS")
    assert "is deleted" in late.json()["detail"]


@pytest.mark.parametrize("key", ["incoming/tune_1/1/lora.safetensors", "incoming/assets/asset_nobodys"])
async def test_put_of_what_is_no_asset_is_nobodys_to_forbid(http: httpx.AsyncClient, service: Any, key: str) -> None:
    put_url = await service.objects.sign_put(key, most_bytes=100, owner="acme")

    assert (await http.put(put_url, content=b"bytes")).status_code == 200


async def test_put_needs_no_database(
    tenant: Any, http: httpx.AsyncClient, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await tenant.assets.CreateAsset(ask.file())

    async def away(*_: object) -> None:
        raise DatabaseAway("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(assets, "status_of", away)
        taken = await http.put(created.transfer_api.presigned_url.put_url, content=ask.png())

    assert taken.status_code == 200
    assert (await completed(tenant, created)).status == asset_pb2.ASSET_STATUS_READY


async def test_completion_of_what_is_fetched_tells_of_its_fetch(tenant: Any, service: Any, ask: Any) -> None:
    url = "https://example.org/cat.png"
    new = assets.NewAsset(tenant.id, "file", "fetched", data={"file_format": "png"}, url=url)
    row = await order(service.database, new, NewFetch(url=url), pending_limit=1)
    complete = asset_service_pb2.CompleteUploadRequest(id=row.id)

    waits = await ask.refused(tenant.assets.CompleteUpload(complete))
    [fetch] = await claim(service.database, 30, tune_lease=30, limit=1)
    await fail(service.database, fetch, "TIMED_OUT", "it took too long")
    failed = await ask.refused(tenant.assets.CompleteUpload(complete))

    assert (waits.code, waits.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_UPLOADED")
    assert "still being fetched" in waits.message
    assert "PUT" not in waits.message
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
    assert "is in error (it took too long)" in failed.message

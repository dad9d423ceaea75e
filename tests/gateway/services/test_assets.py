"""AssetService over gRPC: uploads judged, kept and refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway.judges import Judges
from gateway.metrics import Metrics
from gateway.pictures import Judgement
from gateway.uploads import Uploads, incoming_key
from store.objects.base import ObjectReplaced
from tunesmith.v1 import asset_pb2, asset_service_pb2


def get(id: str) -> asset_service_pb2.GetAssetRequest:
    return asset_service_pb2.GetAssetRequest(id=id)


def complete(id: str) -> asset_service_pb2.CompleteUploadRequest:
    return asset_service_pb2.CompleteUploadRequest(id=id)


def weights(size: int = 64) -> bytes:
    header = b'{"a":{"dtype":"F16","shape":[%d],"data_offsets":[0,%d]}}' % (size // 2, size)
    return len(header).to_bytes(8, "little") + header + bytes(size)


def checkpoint_request(**changes: Any) -> asset_service_pb2.CreateAssetRequest:
    data = asset_pb2.AssetData(checkpoint=asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5"))
    values = {"asset_type": asset_pb2.ASSET_TYPE_CHECKPOINT, "name": "base", "data": data, **changes}
    return asset_service_pb2.CreateAssetRequest(**values)


async def test_new_asset_waits_for_its_bytes_with_a_put_url(tenant: Any, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file("cat.png"))

    assert created.asset.status == asset_pb2.ASSET_STATUS_READY_TO_UPLOAD
    assert created.asset.tenant_uuid == tenant.id
    assert created.transfer_api.presigned_url.put_url.startswith("http://gateway.example/v1/objects/incoming/assets/")
    assert f"&owner={tenant.id}&" in created.transfer_api.presigned_url.put_url, "it counts among its tenant's uploads"
    assert created.transfer_api.presigned_url.get_url == ""
    found = await tenant.assets.GetAsset(get(created.asset.id))
    assert found.transfer_api.presigned_url.put_url != ""


async def test_good_picture_is_ready_under_its_hash_and_can_be_downloaded(tenant: Any, service: Any, ask: Any) -> None:
    content = ask.png()

    asset = await tenant.upload(content)

    assert asset.status == asset_pb2.ASSET_STATUS_READY
    assert asset.size_bytes == len(content)
    assert asset.file_structure == asset_pb2.FILE_STRUCTURE_SINGLE_FILE
    assert asset.data.file.file_format == asset_pb2.FILE_EXTENSION_PNG
    key = f"assets/{asset.id}/{hashlib.sha256(content).hexdigest()}"
    assert b"".join([chunk async for chunk in service.objects.read(key)]) == content
    assert await service.objects.stat(incoming_key(asset.id)) is None
    found = await tenant.assets.GetAsset(get(asset.id))
    assert f"/v1/objects/{key}?" in found.transfer_api.presigned_url.get_url
    assert found.transfer_api.presigned_url.put_url == ""


async def test_truncated_photograph_is_rejected_with_its_reason(tenant: Any, service: Any) -> None:
    file = io.BytesIO()
    Image.effect_noise((256, 256), 90).save(file, "JPEG")

    asset = await tenant.upload(file.getvalue()[: len(file.getvalue()) // 2], name="photo.jpg")

    assert asset.status == asset_pb2.ASSET_STATUS_REJECTED
    assert dict(asset.status_info)["reason"] == "TRUNCATED"
    assert "ends before" in asset.status_details
    assert (await tenant.assets.GetAsset(get(asset.id))).transfer_api.WhichOneof("transfer_api") == "none"
    assert [key async for key, _ in service.objects.list("")] == []


async def test_repeated_completion_is_answered_as_before(tenant: Any, ask: Any) -> None:
    good, bad = await tenant.upload(ask.png()), await tenant.upload(b"not a picture")

    await tenant.assets.CompleteUpload(complete(good.id))
    await tenant.assets.CompleteUpload(complete(bad.id))

    assert (await tenant.assets.GetAsset(get(good.id))).asset == good
    assert (await tenant.assets.GetAsset(get(bad.id))).asset == bad


async def test_completions_at_the_same_time_make_one_asset(tenant: Any, service: Any, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    await service.put(created.asset.id, ask.png())

    await asyncio.gather(*(tenant.assets.CompleteUpload(complete(created.asset.id)) for _ in range(5)))

    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == asset_pb2.ASSET_STATUS_READY


async def test_completion_goes_on_where_a_gateway_died_after_the_move(tenant: Any, service: Any, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    await service.put(created.asset.id, ask.png())
    await service.objects.move(incoming_key(created.asset.id), f"assets/{created.asset.id}/unjudged-1")

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == asset_pb2.ASSET_STATUS_READY


async def test_completion_goes_on_where_a_gateway_died_before_the_commit(tenant: Any, service: Any, ask: Any) -> None:
    content = ask.png()
    created = await tenant.assets.CreateAsset(ask.file())
    await service.put(created.asset.id, content)
    key = f"assets/{created.asset.id}/{hashlib.sha256(content).hexdigest()}"
    await service.objects.move(incoming_key(created.asset.id), key)

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == asset_pb2.ASSET_STATUS_READY


async def test_later_put_changes_nothing_of_a_ready_asset(tenant: Any, service: Any, ask: Any) -> None:
    asset = await tenant.upload(ask.png("teal"))

    await service.put(asset.id, ask.png("red"))
    await tenant.assets.CompleteUpload(complete(asset.id))

    assert (await tenant.assets.GetAsset(get(asset.id))).asset == asset
    key = f"assets/{asset.id}/{hashlib.sha256(ask.png('teal')).hexdigest()}"
    assert await service.objects.stat(key) == asset.size_bytes


async def test_another_upload_amid_a_judgement_changes_nothing_of_what_is_judged(
    tenant: Any, service: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    id, tenant_id = created.asset.id, created.asset.tenant_uuid
    await service.put(id, ask.png("teal"))
    limits = {"max_picture_bytes": 200_000, "max_weights_bytes": 200_000}
    other_gateway = Uploads(service.database, service.objects, service.judges, Metrics("test"), **limits)
    judge, other_judges, first_is_kept = Judges.judge, asyncio.Event(), asyncio.Event()
    others: list[asyncio.Task[Any]] = []

    async def judge_while_another_call_judges(judges: Judges, path: Path) -> Judgement:
        judgement = await judge(judges, path)
        if others:
            other_judges.set()
            await first_is_kept.wait()
        else:
            await service.put(id, ask.png("red"))
            others.append(asyncio.create_task(other_gateway.complete(tenant_id, id)))
            await other_judges.wait()
        return judgement

    monkeypatch.setattr(Judges, "judge", judge_while_another_call_judges)
    await tenant.assets.CompleteUpload(complete(id))
    first_is_kept.set()
    row = await others[0]

    content = ask.png("teal")
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert await service.objects.hash(row.object_key) == (row.sha256, len(content))


async def test_completion_without_an_upload_is_refused(tenant: Any, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file())

    told = await ask.refused(tenant.assets.CompleteUpload(complete(created.asset.id)))

    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_UPLOADED")


async def test_completion_amid_another_put_says_so(
    tenant: Any, service: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large weights in S3, which are read to be moved."""
    created = await tenant.assets.CreateAsset(ask.file())
    await service.put(created.asset.id, ask.png())

    async def replaced(*_: object) -> None:
        raise ObjectReplaced("another object has taken its place")

    with monkeypatch.context() as patch:
        patch.setattr(service.objects, "move", replaced)
        told = await ask.refused(tenant.assets.CompleteUpload(complete(created.asset.id)))
    await tenant.assets.CompleteUpload(complete(created.asset.id))

    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_REPLACED")
    assert created.asset.id in told.message


async def test_upload_that_is_too_large_is_refused_and_a_smaller_one_then_taken(
    tenant: Any, service: Any, ask: Any
) -> None:
    created = await tenant.assets.CreateAsset(ask.file())
    await service.put(created.asset.id, bytes(200_001))

    told = await ask.refused(tenant.assets.CompleteUpload(complete(created.asset.id)))

    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_TOO_LARGE")
    await service.put(created.asset.id, ask.png())
    await tenant.assets.CompleteUpload(complete(created.asset.id))
    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == asset_pb2.ASSET_STATUS_READY


async def test_asset_of_another_tenant_is_not_found(tenant: Any, other: Any, ask: Any) -> None:
    theirs = await other.upload(ask.png())

    calls = [
        tenant.assets.GetAsset(get(theirs.id)),
        tenant.assets.CompleteUpload(complete(theirs.id)),
        tenant.assets.DeleteAsset(asset_service_pb2.DeleteAssetRequest(id=theirs.id)),
    ]

    assert {(await ask.refused(call)).code for call in calls} == {grpc.StatusCode.NOT_FOUND}


async def test_public_checkpoint_can_be_seen_and_not_completed(tenant: Any, ask: Any) -> None:
    found = await tenant.assets.GetAsset(get("tunesmith:tiny-shapes"))

    told = await ask.refused(tenant.assets.CompleteUpload(complete(found.asset.id)))

    assert (found.asset.is_public, found.asset.status) == (True, asset_pb2.ASSET_STATUS_READY)
    assert found.asset.data.checkpoint.engine == "image/stable-diffusion-v1-5"
    assert found.transfer_api.WhichOneof("transfer_api") == "none"
    assert told.code == grpc.StatusCode.NOT_FOUND


async def test_weights_are_judged_by_their_header(tenant: Any, service: Any) -> None:
    created = await tenant.assets.CreateAsset(checkpoint_request())
    await service.put(created.asset.id, weights())

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    asset = (await tenant.assets.GetAsset(get(created.asset.id))).asset
    assert asset.status == asset_pb2.ASSET_STATUS_READY
    assert asset.data.checkpoint.data_type == asset_pb2.DATA_TYPE_FP16
    assert asset.data.checkpoint.file_format == asset_pb2.FILE_FORMAT_SAFETENSORS


async def test_a_completion_goes_on_when_its_caller_leaves_and_who_asks_again_joins_it(
    tenant: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing, hashed = asyncio.Event(), asyncio.Event()
    real, hashes = service.objects.hash, []

    async def slow(key: str) -> tuple[str, int]:
        hashes.append(key)
        hashing.set()
        await hashed.wait()
        digest: tuple[str, int] = await real(key)
        return digest

    monkeypatch.setattr(service.objects, "hash", slow)
    created = await tenant.assets.CreateAsset(checkpoint_request())
    await service.put(created.asset.id, weights())
    first = tenant.assets.CompleteUpload(complete(created.asset.id))
    await asyncio.wait_for(hashing.wait(), 20)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    second = asyncio.ensure_future(tenant.assets.CompleteUpload(complete(created.asset.id)))
    hashed.set()
    await asyncio.wait_for(second, 20)

    assert len(hashes) == 1
    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == asset_pb2.ASSET_STATUS_READY


async def test_weights_without_a_byte_are_rejected_as_empty(tenant: Any, service: Any) -> None:
    created = await tenant.assets.CreateAsset(checkpoint_request())
    await service.put(created.asset.id, b"")

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    asset = (await tenant.assets.GetAsset(get(created.asset.id))).asset
    assert (asset.status, dict(asset.status_info)["reason"]) == (asset_pb2.ASSET_STATUS_REJECTED, "EMPTY")


@pytest.mark.parametrize("said", [None, asset_pb2.FILE_FORMAT_SAFETENSORS, asset_pb2.FILE_FORMAT_PT])
async def test_pickle_is_rejected_as_a_checkpoint_whatever_it_is_said_to_be(
    tenant: Any, service: Any, said: asset_pb2.FileFormat.ValueType | None
) -> None:
    data = asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5", file_format=said)
    created = await tenant.assets.CreateAsset(checkpoint_request(data=asset_pb2.AssetData(checkpoint=data)))
    await service.put(created.asset.id, b"\x80\x04\x95" + bytes(100))

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    asset = (await tenant.assets.GetAsset(get(created.asset.id))).asset
    assert (asset.status, dict(asset.status_info)["reason"]) == (asset_pb2.ASSET_STATUS_REJECTED, "PICKLE")


async def test_weights_that_were_said_to_be_a_pickle_and_are_none_are_taken(tenant: Any, service: Any) -> None:
    data = asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5", file_format=asset_pb2.FILE_FORMAT_PT)
    created = await tenant.assets.CreateAsset(checkpoint_request(data=asset_pb2.AssetData(checkpoint=data)))
    await service.put(created.asset.id, weights())

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    found = (await tenant.assets.GetAsset(get(created.asset.id))).asset
    assert created.asset.data.checkpoint.file_format == asset_pb2.FILE_FORMAT_PT
    assert (found.status, found.data.checkpoint.file_format) == (
        asset_pb2.ASSET_STATUS_READY,
        asset_pb2.FILE_FORMAT_SAFETENSORS,
    )


async def test_pickle_that_is_taken_unjudged_stays_what_it_was_said_to_be(tenant: Any, service: Any) -> None:
    data = asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5", file_format=asset_pb2.FILE_FORMAT_PT)
    asked = checkpoint_request(data=asset_pb2.AssetData(checkpoint=data), skip_validation=True)
    created = await tenant.assets.CreateAsset(asked)
    await service.put(created.asset.id, b"\x80\x04\x95" + bytes(100))

    await tenant.assets.CompleteUpload(complete(created.asset.id))

    found = (await tenant.assets.GetAsset(get(created.asset.id))).asset
    assert (found.status, found.data.checkpoint.file_format) == (
        asset_pb2.ASSET_STATUS_READY,
        asset_pb2.FILE_FORMAT_PT,
    )


@pytest.mark.parametrize(
    ("made", "completed", "skipped"),
    [
        ({}, {"skip_validation": True}, True),
        ({"skip_validation": True}, {}, True),
        ({"skip_validation": True}, {"skip_validation": False}, False),
        ({"skip_validation": False}, {}, False),
    ],
)
async def test_skipped_validation_takes_weights_as_they_are_and_the_later_word_counts(
    tenant: Any, service: Any, made: dict[str, Any], completed: dict[str, Any], skipped: bool
) -> None:
    created = await tenant.assets.CreateAsset(checkpoint_request(**made))
    await service.put(created.asset.id, b"whatever")

    await tenant.assets.CompleteUpload(asset_service_pb2.CompleteUploadRequest(id=created.asset.id, **completed))

    wanted = asset_pb2.ASSET_STATUS_READY if skipped else asset_pb2.ASSET_STATUS_REJECTED
    assert (await tenant.assets.GetAsset(get(created.asset.id))).asset.status == wanted


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"asset_type": asset_pb2.ASSET_TYPE_LORA}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"data": asset_pb2.AssetData()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"data": None}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (
            {"data": asset_pb2.AssetData(checkpoint=asset_pb2.CheckpointData())},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        ({"url": "http://x.example/m"}, grpc.StatusCode.FAILED_PRECONDITION, "FETCHING_NOT_CONFIGURED"),
        ({"hf_repo": "o/r"}, grpc.StatusCode.FAILED_PRECONDITION, "FETCHING_NOT_CONFIGURED"),
        ({"is_public": True}, grpc.StatusCode.PERMISSION_DENIED, "OPERATOR_ONLY"),
        ({"name": "a:b"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_wrong_request_is_refused(
    tenant: Any, ask: Any, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    told = await ask.refused(tenant.assets.CreateAsset(checkpoint_request(**changes)))

    assert (told.code, told.reason) == (code, reason)


async def test_all_that_is_wrong_with_an_asset_is_told_at_once(tenant: Any, ask: Any) -> None:
    request = checkpoint_request(
        asset_type=asset_pb2.ASSET_TYPE_FILE, url="https://x.example/m", hf_repo="no repository"
    )

    told = await ask.refused(tenant.assets.CreateAsset(request))

    assert told.violations.keys() == {"data", "hf_repo"}


async def test_rules_that_an_asset_breaks_are_told_with_all_else(tenant: Any, ask: Any) -> None:
    request = checkpoint_request(asset_type=asset_pb2.ASSET_TYPE_FILE, name="a/b", hf_repo="no repository")
    unknown = checkpoint_request(asset_type=99, hf_repo="no repository")
    empty = asset_service_pb2.CreateAssetRequest(name="n", asset_type=asset_pb2.ASSET_TYPE_FILE, hf_repo="o/r")

    told = [await ask.refused(tenant.assets.CreateAsset(one)) for one in (request, unknown, empty)]

    assert [one.violations.keys() for one in told] == [
        {"name", "data", "hf_repo"},
        {"asset_type", "hf_repo"},
        {"data", "hf_repo"},
    ]
    assert told[0].violations["data"] == "its asset_type is 'checkpoint'; asset_type is 'file'"
    assert told[2].violations["data"] == "value is required"


async def test_url_is_judged_though_nothing_is_fetched(tenant: Any, ask: Any) -> None:
    told = await ask.refused(tenant.assets.CreateAsset(checkpoint_request(name="a:b", url="ftp://u:p@shop.example/")))

    assert told.violations.keys() == {"name", "url"}
    assert "p@" not in told.violations["url"]


async def test_operator_may_publish(service: Any, tenant: Any) -> None:
    operator = await service.tenant("house", is_operator=True)

    created = await operator.assets.CreateAsset(checkpoint_request(is_public=True))
    seen = await tenant.assets.GetAsset(get("house:base"))

    assert created.asset.is_public
    assert seen.asset.id == created.asset.id
    assert seen.transfer_api.WhichOneof("transfer_api") == "none", "another tenant's bytes are not ours to put"


async def test_list_gives_pages_newest_first_with_previews_where_asked(tenant: Any, ask: Any) -> None:
    made = [(await tenant.upload(ask.png(colour))).id for colour in ("red", "green", "blue")]

    first = await tenant.assets.ListAssets(asset_service_pb2.ListAssetsRequest(limit=2, get_preview_urls=True))
    chosen = await tenant.assets.ListAssets(asset_service_pb2.ListAssetsRequest(asset_ids=f"{made[0]},{made[2]}"))

    assert [asset.id for asset in first.data] == [made[2], made[1]]
    assert (first.has_more, first.total) == (True, 3)
    assert "/v1/objects/assets/" in first.data[0].data.file.preview_url
    assert [asset.id for asset in chosen.data] == [made[2], made[0]]
    assert not chosen.data[0].data.file.HasField("preview_url")


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ({}, {"base", "cat.png"}),
        ({"name": "cat.png"}, {"cat.png"}),
        ({"asset_type": [asset_pb2.ASSET_TYPE_CHECKPOINT]}, {"base"}),
        ({"engine": ["image/stable-diffusion-v1-5"]}, {"base"}),
        ({"engine_type": "image"}, {"base"}),
        ({"engine_type": "text"}, set()),
        ({"file_format": ["png"]}, {"cat.png"}),
        ({"file_format": ["jpeg", "safetensors"]}, set()),
        ({"name": ""}, set()),
        ({"owner": ""}, set()),
        ({"engine": [""]}, set()),
        ({"asset_ids": ""}, set()),
        ({"asset_ids": " ,, "}, set()),
        ({"is_public": True}, {"tiny-shapes", "default-sd15", "default-sdxl"}),
        ({"is_public": False}, {"base", "cat.png"}),
        ({"owner": "octoai"}, {"default-sd15", "default-sdxl"}),
        ({"owner": "acme"}, {"base", "cat.png"}),
        ({"data_type": asset_pb2.DATA_TYPE_INT4}, set()),
    ],
)
async def test_list_filters(tenant: Any, ask: Any, which: dict[str, Any], names: set[str]) -> None:
    await tenant.upload(ask.png(), name="cat.png")
    await tenant.assets.CreateAsset(checkpoint_request())

    listed = await tenant.assets.ListAssets(asset_service_pb2.ListAssetsRequest(**which))

    assert {asset.name for asset in listed.data} == names
    assert listed.total == len(names)


@pytest.mark.parametrize("word", ["jpg", "jpeg"])
async def test_either_word_for_a_jpeg_finds_it_whichever_it_is_told_by(tenant: Any, word: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "JPEG")
    told_jpg = await tenant.upload(file.getvalue())
    data = asset_pb2.AssetData(file=asset_pb2.FileData(file_format=asset_pb2.FILE_EXTENSION_JPEG))
    told_jpeg = await tenant.assets.CreateAsset(
        asset_service_pb2.CreateAssetRequest(asset_type=asset_pb2.ASSET_TYPE_FILE, name="waits", data=data)
    )

    found = await tenant.assets.ListAssets(asset_service_pb2.ListAssetsRequest(file_format=[word]))

    assert [asset.id for asset in found.data] == [told_jpeg.asset.id, told_jpg.id]


@pytest.mark.parametrize("word", ["nope", "PNG", ""])
async def test_word_that_is_no_format_is_no_filter(tenant: Any, ask: Any, word: str) -> None:
    told = await ask.refused(tenant.assets.ListAssets(asset_service_pb2.ListAssetsRequest(file_format=["png", word])))

    assert (told.code, told.violations.keys()) == (grpc.StatusCode.INVALID_ARGUMENT, {"file_format[1]"})
    assert "safetensors" in told.violations["file_format[1]"]


async def test_deleted_asset_is_gone(tenant: Any, ask: Any) -> None:
    asset = await tenant.upload(ask.png())

    deleted = await tenant.assets.DeleteAsset(asset_service_pb2.DeleteAssetRequest(id=asset.id))

    assert deleted.id == asset.id
    assert deleted.HasField("deleted_at")
    assert (await ask.refused(tenant.assets.GetAsset(get(asset.id)))).code == grpc.StatusCode.NOT_FOUND

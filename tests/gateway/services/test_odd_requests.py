"""Odd texts and numbers on each database: what is taken is kept as it is, and no question is too odd for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from tests.servers import odd_requests
from tests.servers.odd_requests import BIDI, EMOJI, INT32, INT64, TAKEN
from tunesmith.v1 import asset_pb2
from tunesmith.v1 import asset_service_pb2 as assets
from tunesmith.v1 import tune_service_pb2 as tunes

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
NOTHING = "nothing"  # stands for an answer without a tune or an asset


async def test_odd_texts_are_kept_as_they_are(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())
    taken = [odd for odd in odd_requests.texts() if odd.reason == TAKEN]

    for number, odd in enumerate(taken):
        request = odd.message(picture.id)
        if odd.place != ("name",):
            request.name = f"odd {number}"
        if odd.rpc == "CreateTune":
            kept = await tenant.tunes.GetTune(tunes.GetTuneRequest(id=(await tenant.tunes.CreateTune(request)).id))
            [file] = kept.details.lora_tune.files
            asked = request.details.lora_tune
            assert (file.caption, kept.details.lora_tune.trigger_words) == (asked.files[0].caption, asked.trigger_words)
            assert kept.metadata == request.metadata
        else:
            created = (await tenant.assets.CreateAsset(request)).asset
            kept = (await tenant.assets.GetAsset(assets.GetAssetRequest(id=created.id))).asset
            named = (await tenant.assets.GetAsset(assets.GetAssetRequest(id=request.name))).asset
            assert named == kept
        assert (kept.name, kept.description) == (request.name, request.description), odd
    assert len(taken) > 40


def questions(tune_id: str) -> Iterator[tuple[Message, object]]:
    """What is asked, and the code or the answer expected."""
    for limit, told in ((1, NOTHING), (100, NOTHING), (0, INVALID), (101, INVALID), (-INT32, INVALID)):
        yield tunes.ListTunesRequest(name="none", limit=limit), told
        yield assets.ListAssetsRequest(name="none", limit=limit), told
    for offset, told in ((INT32 - 1, NOTHING), (-1, INVALID)):
        yield tunes.ListTunesRequest(offset=offset), told
        yield assets.ListAssetsRequest(offset=offset), told
    for after, told in ((INT32 - 1, NOTHING), (INT32, NOTHING), (INT64 - 1, NOTHING), (-1, INVALID), (-INT64, INVALID)):
        yield tunes.ListTuneEventsRequest(id=tune_id, after_id=after), told
        yield tunes.WatchTuneRequest(id=tune_id, after_id=after), told
    yield tunes.ListTuneEventsRequest(id=tune_id, after_id=INT64 - 1, limit=1000), NOTHING
    for text in (EMOJI, BIDI, "'; --", "%", "_", "\\", "x" * 100_000, "\ufffe"):
        yield tunes.ListTunesRequest(name=text, trigger_words=[text], engine=text, base_checkpoint_id=text), NOTHING
        yield assets.ListAssetsRequest(name=text, engine=[text], owner=text), NOTHING
        yield assets.ListAssetsRequest(file_format=[text]), INVALID
        for of in (tunes.GetTuneRequest, tunes.CancelTuneRequest, tunes.DeleteTuneRequest, tunes.WatchTuneRequest):
            yield of(id=text), NOT_FOUND
        for one in (assets.GetAssetRequest, assets.CompleteUploadRequest, assets.DeleteAssetRequest):
            yield one(id=text), NOT_FOUND
    yield tunes.GetTuneRequest(id="a\0"), INVALID
    yield tunes.ListTunesRequest(trigger_words=["\0"]), INVALID
    for empty in (
        tunes.ListTunesRequest(name=""),
        tunes.ListTunesRequest(engine=""),
        tunes.ListTunesRequest(base_checkpoint_id=""),
        tunes.ListTunesRequest(trigger_words=[""]),
    ):
        yield empty, NOTHING
    for many, told in ((1000, NOTHING), (1001, INVALID), (100_000, INVALID)):
        yield tunes.ListTunesRequest(trigger_words=["w"] * many), told
        yield assets.ListAssetsRequest(engine=["e"] * many), told
        yield assets.ListAssetsRequest(file_format=["png"] * many, name="none"), told
        yield assets.ListAssetsRequest(asset_type=[asset_pb2.ASSET_TYPE_LORA] * many), told
    yield assets.ListAssetsRequest(asset_ids=",".join(["asset_x"] * 4000)), NOTHING
    yield assets.ListAssetsRequest(asset_ids=",".join(["asset_x"] * 5000)), INVALID
    for rule in (
        {"asset_type": [99]},
        {"data_type": 99},
        {"engine_type": "picture"},
        {"engine_type": ""},
        {"file_format": [""]},
    ):
        yield assets.ListAssetsRequest(**rule), INVALID


async def test_no_question_is_too_odd_for_an_answer(tenant: Any) -> None:
    tune = await tenant.create_tune()
    await tenant.tunes.CancelTune(tunes.CancelTuneRequest(id=tune.id))

    told = []
    with structlog.testing.capture_logs() as logs:
        for request, expected in questions(tune.id):
            said = await answer(tenant, request)
            if said != expected:
                told.append(f"{type(request).__name__} {str(request)[:100]}: {said}")

    assert told == []
    assert logs
    assert max(len(str(line)) for line in logs) < 1000, "the log is no place to store what callers like"


async def answer(tenant: Any, request: Message) -> object:
    rpc = type(request).__name__.removesuffix("Request")
    call = getattr(tenant.tunes if hasattr(tenant.tunes, rpc) else tenant.assets, rpc)(request)
    try:
        if rpc == "WatchTune":
            return NOTHING if await call.read() is grpc.aio.EOF else "an event"
        found = await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return NOTHING if not found.data else found

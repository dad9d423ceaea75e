"""Rows as messages and requests as rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from gateway import wire
from gateway.http import json as profile
from store.assets import AssetFilter
from store.states import TuneState
from store.tables import Asset, Event, Tune
from store.tunes import TuneFilter
from tunesmith.v1 import asset_pb2, asset_service_pb2, tune_pb2, tune_service_pb2

NOON = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)
TENANT = "7f0b2f0e-6f5c-4d0e-9d5e-0123456789ab"


def tune_row(**changes: Any) -> Tune:
    details = {
        "base_checkpoint": {"checkpoint_id": "asset_c", "engine": "image/e", "name": "base"},
        "files": [{"file_id": "asset_1", "caption": None}, {"file_id": "asset_2", "caption": "a cat"}],
        "resize_images": None,
        "seed": 2**32 - 1,
        "steps": 100,
        "trigger_words": ["sks"],
        "hyperparameters": {"rank": 8, "schedule": "linear"},
    }
    values: dict[str, Any] = {
        **{"id": "tune_1", "tenant_id": TENANT, "name": "n", "description": "d", "engine": "image/e"},
        **{"checkpoint_id": "asset_c", "checkpoint_ref": "base", "checkpoint_name": "base", "details": details},
        **{"trigger_words": ["sks"], "steps": 100, "metadata_": {"k": "v"}, "request_hash": "h"},
        **{"state": TuneState.QUEUED, "output_lora_ids": [], "rejected": [], "unready": []},
        **{"created_at": NOON, "updated_at": NOON},
    }
    return Tune(**{**values, **changes})


def asset_row(**changes: Any) -> Asset:
    values: dict[str, Any] = {
        **{"id": "asset_1", "tenant_id": TENANT, "asset_type": "file", "name": "cat", "status": "ready"},
        **{"data": {"file_format": "png", "preview_url": None, "version": None}, "size_bytes": 2**40},
        **{"created_at": NOON},
    }
    return Asset(**{**values, **changes})


def request(**changes: Any) -> tune_service_pb2.CreateTuneRequest:
    message = tune_service_pb2.CreateTuneRequest(name="n", metadata={"b": "2", "a": "1"}, **changes)
    asked = message.details.lora_tune
    asked.base_checkpoint.checkpoint_id = "tunesmith:tiny-shapes"
    asked.steps = 10
    asked.trigger_words.append("sks")
    asked.files.add(file_id="asset_1")
    asked.files.add(file_id="asset_2", caption="a cat")
    return message


def test_pending_tune_is_told_whole() -> None:
    told = profile.to_json(wire.tune(tune_row(), queue_position=3, pending_reason="it waits"))

    assert told["status"] == "pending"
    assert told["result"] is None
    assert told["succeeded_at"] is None
    assert told["created_at"] == "2026-11-23T12:00:00.250000Z"
    assert told["details"]["tune_type"] == "lora_tune"
    assert told["details"]["seed"] == 2**32 - 1
    assert told["details"]["files"] == [
        {"file_id": "asset_1", "caption": None},
        {"file_id": "asset_2", "caption": "a cat"},
    ]
    assert told["details"]["hyperparameters"]["schedule"] == "linear"
    assert (told["progress"]["queue_position"], told["progress"]["pending_reason"]) == (3, "it waits")
    assert told["metadata"] == {"k": "v"}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (TuneState.QUEUED, "pending"),
        (TuneState.ASSIGNED, "pending"),
        (TuneState.RUNNING, "running"),
        (TuneState.SUCCEEDED, "succeeded"),
        (TuneState.FAILED, "failed"),
        (TuneState.CANCELLED, "cancelled"),
    ],
)
def test_each_state_has_its_public_status(state: TuneState, status: str) -> None:
    assert profile.to_json(wire.tune(tune_row(state=state)))["status"] == status


def test_running_tune_tells_its_phase_and_the_time_to_go() -> None:
    row = tune_row(state=TuneState.RUNNING, phase="training", step=40, loss=0.25, steps_per_second=4.0)

    progress = profile.to_json(wire.tune(row))["progress"]

    assert (progress["phase"], progress["step"], progress["steps"]) == ("training", 40, 100)
    assert (progress["loss"], progress["steps_per_second"], progress["eta_seconds"]) == (0.25, 4.0, 15.0)


def test_finished_tune_tells_no_time_to_go() -> None:
    row = tune_row(state=TuneState.SUCCEEDED, step=100, steps_per_second=4.0, phase="saving", succeeded_at=NOON)

    progress = wire.tune(row).progress

    assert not progress.HasField("eta_seconds")
    assert progress.phase == tune_pb2.TUNE_PHASE_UNSPECIFIED


def test_result_tells_the_files_by_their_fate() -> None:
    row = tune_row(state=TuneState.FAILED, available=2, rejected=["asset_2"], unready=["asset_3"])

    result = profile.to_json(wire.tune(row))["result"]

    assert result == {
        "number_of_available_assets": 2,
        "output_assets": [],
        "rejected_assets": ["asset_2"],
        "unready_assets": ["asset_3"],
    }


def test_stored_details_of_another_version_are_read_as_far_as_they_go() -> None:
    row = tune_row()
    row.details = {**row.details, "hyperparameters": {"rank": 8, "tau": 3.0}, "seed": "many"}

    lora_tune = wire.tune(row).details.lora_tune

    assert lora_tune.hyperparameters.rank == 8
    assert lora_tune.steps == 100


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("status_changed", {"status": "running", "details": "", "reason": "ACCEPTED", "attempt": 1}),
        ("verdict", {"file_id": "asset_1", "accepted": False, "reason": "TRUNCATED", "details": "cut"}),
        ("recipe_resolved", {"recipe": {"rank": 4}, "sha256": "00"}),
        ("warning", {"reason": "CAPTION_CUT", "details": "long"}),
        ("metrics", {"steps": [{"step": 1, "loss": 0.5, "learning_rate": 1e-4, "steps_per_second": 3, "epoch": 1}]}),
        ("sample", {"step": 5, "prompt": "a cat", "asset_id": "asset_9"}),
        ("snapshot", {"step": 50}),
    ],
)
def test_event_of_each_kind_comes_through(kind: str, body: dict[str, Any]) -> None:
    row = Event(tune_id="tune_1", seq=7, created_at=NOON, kind=kind, body=body)

    told = profile.to_json(wire.event(row))

    assert told["id"] == 7
    assert told["event"] == {"type": kind, **body}


def test_event_of_an_unknown_kind_keeps_its_place_in_the_log() -> None:
    row = Event(tune_id="tune_1", seq=8, created_at=NOON, kind="dreamt", body={"of": "sheep"})

    message = wire.event(row)

    assert message.id == 8
    assert message.event.WhichOneof("body") is None


def test_file_asset_is_told_whole() -> None:
    told = profile.to_json(wire.asset(asset_row(), preview_url="http://preview"))

    assert told["data"] == {
        "asset_type": "file",
        "file_format": "png",
        "preview_url": "http://preview",
        "version": None,
    }
    assert (told["size_bytes"], told["status"], told["status_info"]) == (2**40, "ready", None)


def test_rejected_asset_tells_its_reason() -> None:
    row = asset_row(status="rejected", status_details="cut off", status_info={"reason": "TRUNCATED"})

    told = profile.to_json(wire.asset(row))

    assert (told["status"], told["status_details"]) == ("rejected", "cut off")
    assert told["status_info"] == {"reason": "TRUNCATED"}


def test_checkpoint_asset_tells_its_engine() -> None:
    row = asset_row(asset_type="checkpoint", data={"engine": "image/e", "data_type": "fp16"}, is_public=True)

    told = profile.to_json(wire.asset(row))

    assert told["data"]["asset_type"] == "checkpoint"
    assert (told["data"]["engine"], told["data"]["data_type"]) == ("image/e", "fp16")


@pytest.mark.parametrize("kind", ["checkpoint", "lora", "textual_inversion", "vae", "latent"])
def test_weights_of_an_unknown_format_are_told_without_one(kind: str) -> None:
    row = asset_row(asset_type=kind, data={"engine": "image/e", "file_format": "unknown"})

    told = profile.to_json(wire.asset(row))

    assert (told["data"]["asset_type"], told["data"]["file_format"]) == (kind, None)


def test_picture_of_an_unknown_format_is_told_as_such() -> None:
    told = profile.to_json(wire.asset(asset_row(data={"file_format": "unknown"})))

    assert told["data"]["file_format"] == "unknown"


def test_new_tune_names_the_checkpoint_as_the_caller_does() -> None:
    new = wire.new_tune(request(priority=5), tenant_id=TENANT)

    assert (new.checkpoint_ref, new.checkpoint_engine) == ("tunesmith:tiny-shapes", None)
    assert new.files == [("asset_1", None), ("asset_2", "a cat")]
    assert (new.steps, new.priority, new.trigger_words) == (10, 5, ["sks"])


def test_new_tune_holds_the_engine_that_the_caller_expects() -> None:
    asked = request()
    asked.details.lora_tune.base_checkpoint.engine = "image/e"

    assert wire.new_tune(asked, tenant_id=TENANT).checkpoint_engine == "image/e"


def test_request_hash_knows_a_retry_whatever_its_id() -> None:
    first = request()
    retry = request(request_id="again")
    retry.metadata.clear()
    retry.metadata["a"] = "1"
    retry.metadata["b"] = "2"
    other = request(description="")

    assert wire.request_hash(first) == wire.request_hash(retry)
    assert wire.request_hash(first) != wire.request_hash(other)


def test_filter_by_nothing_lets_everything_through_a_hundred_at_a_time() -> None:
    which = wire.asset_filter(asset_service_pb2.ListAssetsRequest())
    tunes = wire.tune_filter(tune_service_pb2.ListTunesRequest())

    assert (which, which.limit, which.offset) == (AssetFilter(asset_types=[], engines=[], file_formats=[]), 100, 0)
    assert (tunes, tunes.limit, tunes.offset) == (TuneFilter(trigger_words=[]), 100, 0)


def test_filter_that_is_given_and_empty_counts() -> None:
    which = wire.asset_filter(asset_service_pb2.ListAssetsRequest(name="", owner="", asset_ids=" , "))
    tunes = wire.tune_filter(tune_service_pb2.ListTunesRequest(name="", engine="", base_checkpoint_id=""))

    assert (which.name, which.owner, which.asset_ids) == ("", "", [])
    assert (tunes.name, tunes.engine, tunes.base_checkpoint) == ("", "", "")


def test_filter_holds_all_that_was_asked_for() -> None:
    which = wire.asset_filter(
        asset_service_pb2.ListAssetsRequest(
            asset_type=[asset_pb2.ASSET_TYPE_LORA],
            data_type=asset_pb2.DATA_TYPE_FP16,
            file_format=["png", "jpeg"],
            asset_ids="asset_1, asset_2",
            is_public=False,
            limit=5,
        )
    )

    assert (which.asset_types, which.data_type, which.file_formats) == (["lora"], "fp16", ["jpeg", "jpg", "png"])
    assert (which.asset_ids, which.is_public, which.limit) == (["asset_1", "asset_2"], False, 5)


@pytest.mark.parametrize(
    ("asked", "found", "told"),
    [
        ("jpg", "jpeg", "jpg"),
        ("jpeg", "jpeg", "jpeg"),
        ("png", "jpeg", "jpg"),
        (None, "png", "png"),
        ("jpg", "webp", "unknown"),
    ],
)
def test_picture_format_is_that_of_its_bytes(asked: str | None, found: str, told: str) -> None:
    assert wire.picture_data({"file_format": asked, "version": "1"}, found) == {"file_format": told, "version": "1"}


def test_what_does_not_fit_of_a_stored_message_stays_unset_and_is_not_logged() -> None:
    stored = {
        "seed": 2**70,
        "resize_images": "maybe",
        "steps": 10,
        "trigger_words": ["a", 7, "b", 8],
        "files": [{"file_id": "x", "caption": 5}, 6],
        "hyperparameters": {"schedule": "spiral", "rank": "x", "alpha": 2.0, "of_tomorrow": "secret"},
    }

    with structlog.testing.capture_logs() as logs:
        message = wire.read(stored, tune_pb2.LoraTune())

    assert [field.name for field, _ in message.hyperparameters.ListFields()] == ["alpha"]
    assert not message.HasField("seed")
    assert not message.HasField("resize_images")
    assert (message.steps, list(message.trigger_words)) == (10, ["a", "b"])
    assert [(file.file_id, file.HasField("caption")) for file in message.files] == [("x", False)]
    [line] = logs
    assert "hyperparameters.schedule" in line["event"]
    assert not [value for value in ("spiral", "maybe", "secret") if value in str(line)]

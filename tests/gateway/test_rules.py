from __future__ import annotations

from typing import Any

import protovalidate
import pytest

from gateway import rules
from tunesmith.v1.asset_pb2 import ASSET_TYPE_FILE
from tunesmith.v1.asset_service_pb2 import CreateAssetRequest
from tunesmith.v1.tune_service_pb2 import CreateTuneRequest, ListTunesRequest


def request_with(files: int) -> CreateTuneRequest:
    request = CreateTuneRequest(name="a")
    recipe = request.details.lora_tune
    recipe.base_checkpoint.checkpoint_id = "b"
    recipe.steps = 10
    recipe.trigger_words.append("sks")
    for number in range(files):
        recipe.files.add(file_id=f"asset_{number}", caption="a red star")
    return request


def broken(message: Any) -> dict[str, str]:
    return {violation.field: violation.reason for violation in rules.violations(message)}


def test_a_request_within_the_rules_breaks_none() -> None:
    assert broken(request_with(files=20)) == {}
    assert broken(request_with(files=1000)) == {}
    assert broken(ListTunesRequest()) == {}


def test_every_rule_broken_is_told_with_its_path() -> None:
    request = request_with(files=1)
    request.name = ""
    request.details.lora_tune.files[0].file_id = ""
    request.metadata['k"[0].'] = "v" * 600
    request.priority = 101

    assert broken(request) == {
        "name": "STRING_MIN_LEN",
        "details.lora_tune.files[0].file_id": "STRING_MIN_LEN",
        'metadata["k\\"[0]."]': "STRING_MAX_LEN",
        "priority": "INT32_GTE_LTE",
    }


@pytest.mark.parametrize("character", ["/", "?", "#", "%", ":", "\x1f", "\x7f", "\x80", "\x85", "\x9f"])
def test_a_name_holds_nothing_that_ends_it_or_is_not_seen(character: str) -> None:
    tune, asset = request_with(files=1), CreateAssetRequest(asset_type=ASSET_TYPE_FILE)
    asset.data.file.SetInParent()
    tune.name = asset.name = f"a{character}b"

    assert broken(tune) == broken(asset) == {"name": "STRING_PATTERN"}
    tune.name = asset.name = "a\xa0b é 名 🦊"
    assert broken(tune) == broken(asset) == {}


def test_a_list_far_too_long_is_told_without_a_look_into_it() -> None:
    request = request_with(files=100_000)
    for number in range(2000):
        request.metadata[str(number)] = ""

    assert broken(request) == {"details.lora_tune.files": "REPEATED_MAX_ITEMS", "metadata": "MAP_MAX_PAIRS"}


def test_a_nul_is_found_in_every_kind_of_string() -> None:
    request = request_with(files=2)
    request.description = "\0"
    request.details.lora_tune.files[1].caption = "a\0b"
    request.metadata["\0"] = "v"
    request.metadata["k"] = "\0"

    assert broken(request) == {
        "description": "CONTAINS_NUL",
        "details.lora_tune.files[1].caption": "CONTAINS_NUL",
        'metadata["\\u0000"]': "CONTAINS_NUL",
        'metadata["k"]': "CONTAINS_NUL",
    }


def test_a_zero_byte_of_a_number_is_no_nul() -> None:
    request = request_with(files=1)
    request.details.lora_tune.hyperparameters.alpha = 2.0

    assert b"\0" in request.SerializeToString()
    assert broken(request) == {}


def test_a_rule_that_cannot_be_judged_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(message: Any) -> Any:
        raise protovalidate.EvaluationError("Iteration budget exceeded")

    monkeypatch.setattr(protovalidate, "collect_violations", gives_up)

    assert broken(request_with(files=1)) == {"": "TOO_LARGE"}

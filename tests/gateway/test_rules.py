from __future__ import annotations

from typing import Any

import protovalidate
import pytest
from buf.validate import validate_pb2

from gateway import rules
from tunesmith.trainer.v1.trainer_service_pb2 import DESCRIPTOR as TRAINERS
from tunesmith.v1 import options_pb2
from tunesmith.v1.asset_pb2 import ASSET_TYPE_FILE
from tunesmith.v1.asset_service_pb2 import DESCRIPTOR as ASSETS
from tunesmith.v1.asset_service_pb2 import CreateAssetRequest
from tunesmith.v1.tune_service_pb2 import DESCRIPTOR as TUNES
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


@pytest.mark.parametrize("files", [1001, 100_000])
def test_a_list_too_long_is_told_beside_all_else_and_looked_at_as_far_as_it_may_go(files: int) -> None:
    request = request_with(files=files)
    request.details.lora_tune.files[7].file_id = ""
    request.details.lora_tune.files[1000].file_id = ""
    for number in range(2000):
        request.metadata[str(number)] = ""
    request.priority = 101

    assert broken(request) == {
        "details.lora_tune.files": "REPEATED_MAX_ITEMS",
        "details.lora_tune.files[7].file_id": "STRING_MIN_LEN",
        "metadata": "MAP_MAX_PAIRS",
        "priority": "INT32_GTE_LTE",
    }
    assert len(request.details.lora_tune.files) == files, "the request itself is left as it came"


def test_a_rule_broken_is_told_with_what_was_wanted_and_what_came() -> None:
    request = request_with(files=1)
    request.name = "a:b"
    request.request_id = "ä"
    request.description = "x" * 10_001
    request.metadata["k"] = "v" * 600
    recipe = request.details.lora_tune
    recipe.steps = 0
    recipe.trigger_words[:] = ["\x85", "b"]
    recipe.hyperparameters.alpha = -1.5

    assert {one.field: one.description for one in rules.violations(request)} == {
        "name": "must have none of / ? # % : and no control characters; got 'a:b'",
        "request_id": "must be printable ASCII characters alone; got 'ä'",
        "description": f"must be at most 10000 characters; got '{'x' * 60}'..., 10001 characters",
        'metadata["k"]': f"must be at most 512 characters; got '{'v' * 60}'..., 600 characters",
        "details.lora_tune.steps": "must be greater than or equal to 1 and less than or equal to 100000; got 0",
        "details.lora_tune.trigger_words": "must contain no more than 1 item(s); got 2",
        "details.lora_tune.trigger_words[0]": (
            "must have a character that is no space, and no control characters; got '\\x85'"
        ),
        "details.lora_tune.hyperparameters.alpha": "must be greater than 0 and less than or equal to 1024; got -1.5",
    }


def test_a_secret_is_not_repeated() -> None:
    request = CreateAssetRequest(asset_type=ASSET_TYPE_FILE, name="a", url="https://signed" + "u" * 5000)
    request.data.file.SetInParent()
    request.hf_token_secret = "hf_" + "s" * 300

    told = rules.violations(request)

    assert {one.field for one in told} == {"url", "hf_token_secret"}
    assert not [one for one in told if "uuu" in one.description or "sss" in one.description]


def test_every_pattern_has_its_words() -> None:
    silent = []
    for service in (TUNES, ASSETS, TRAINERS):
        for message in service.message_types_by_name.values():
            for field in message.fields:
                options = field.GetOptions()
                found = options.Extensions[validate_pb2.field]
                if found.string.pattern or found.repeated.items.string.pattern:
                    silent += [field.full_name] * (not options.Extensions[options_pb2.pattern_words])

    assert silent == []


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

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import protovalidate
import pytest
from buf.validate import validate_pb2

from gateway import rules
from gateway.http.profile import is_map
from tunesmith.trainer.v1.trainer_service_pb2 import DESCRIPTOR as TRAINERS
from tunesmith.trainer.v1.trainer_service_pb2 import Heartbeat, HeldAttempt, TrainerMessage
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


@pytest.mark.parametrize("words", [2, 16, 17, 8000])
def test_a_list_too_long_is_told_once_and_in_the_same_words_whatever_its_length(words: int) -> None:
    request = request_with(files=1)
    request.details.lora_tune.trigger_words[:] = ["a"] * words
    request.details.lora_tune.trigger_words[1] = "\x85"

    assert [(one.field, one.description) for one in rules.violations(request) if "[" not in one.field] == [
        ("details.lora_tune.trigger_words", f"must contain no more than 1 item(s); got {words}")
    ]
    assert broken(request)["details.lora_tune.trigger_words[1]"] == "STRING_PATTERN"


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


def requests() -> list[Any]:
    """The types of all that callers and trainers send."""
    services = [service for file in (TUNES, ASSETS, TRAINERS) for service in file.services_by_name.values()]
    return [method.input_type for service in services for method in service.methods]


def fields_below(descriptor: Any, seen: set[str]) -> Iterator[Any]:
    """Each field of the type, of those in it, and so on: entries of maps too."""
    if descriptor.full_name not in seen:
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            yield field
            if field.message_type is not None:
                yield from fields_below(field.message_type, seen)


def test_every_pattern_has_its_words() -> None:
    seen: set[str] = set()
    patterns, silent = set(), []
    for field in (field for request in requests() for field in fields_below(request, seen)):
        options = field.GetOptions()
        rules_ = options.Extensions[validate_pb2.field]
        strings = (rules_.string, rules_.repeated.items.string, rules_.map.keys.string, rules_.map.values.string)
        if any(string.pattern for string in strings):
            patterns.add(field.full_name)
            silent += [field.full_name] * (not options.Extensions[options_pb2.pattern_words])

    assert silent == []
    assert {"tunesmith.v1.LoraTune.trigger_words", "tunesmith.trainer.v1.Hello.trainer_id"} <= patterns


def test_every_list_of_a_callers_request_has_a_bound_that_cuts_it() -> None:
    """Unless it is text of the trainers', who are the operator's own, there is no end to what one request may cost."""
    unbounded = []
    for request in requests():
        if request.full_name.startswith("tunesmith.v1."):
            bounded = {path[-1] for path, _ in rules._bounded(request)}
            found = fields_below(request, set())
            unbounded += [f.full_name for f in found if (f.is_repeated or is_map(f)) and f.name not in bounded]

    assert unbounded == []


def test_a_list_of_what_is_not_there_does_not_bring_it_there() -> None:
    request = CreateTuneRequest(name="a", metadata={str(number): "" for number in range(20)})

    assert broken(request) == {"metadata": "MAP_MAX_PAIRS", "details": "REQUIRED"}
    beat = TrainerMessage(heartbeat=Heartbeat())
    beat.heartbeat.held.extend(HeldAttempt() for _ in range(3000))
    assert {path.partition(".")[0].partition("[")[0] for path in broken(beat)} == {"heartbeat"}


def test_of_a_map_too_long_those_with_the_least_keys_are_looked_at() -> None:
    request = request_with(files=1)
    for number in range(20, 40):
        request.metadata[str(number)] = "v" * 600

    assert broken(request).keys() == {"metadata", *(f'metadata["{key}"]' for key in range(20, 36))}


def test_a_keys_own_rule_shows_the_key_and_not_the_value() -> None:
    request = request_with(files=1)
    request.metadata["k" * 65] = "value"

    [told] = rules.violations(request)

    assert (told.field, told.description) == (f'metadata["{"k" * 65}"]', "must be at most 64 characters")


def test_a_word_that_is_none_is_told_with_those_that_are() -> None:
    request = CreateAssetRequest(name="a", asset_type=0)  # type: ignore[arg-type]
    request.data.checkpoint.engine = "image/x"
    request.data.checkpoint.data_type = 99  # type: ignore[assignment]

    assert {one.field: one.description for one in rules.violations(request)} == {
        "asset_type": "must be one of file, checkpoint, lora, textual_inversion, vae, latent; got unspecified",
        "data.checkpoint.data_type": "must be one of fp16, fp32, int4, int8; got 99",
    }


def test_files_without_an_id_are_not_the_same_file() -> None:
    request = request_with(files=1)
    request.details.lora_tune.files.add()
    request.details.lora_tune.files.add()

    assert set(broken(request)) == {"details.lora_tune.files[1].file_id", "details.lora_tune.files[2].file_id"}


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

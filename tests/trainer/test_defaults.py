"""The hyperparameter table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from trainer.engine.defaults import SETTINGS, SNAPSHOT_EVERY, SNAPSHOT_INTERVAL, Value, filled, snapshot_every
from trainer.engine.families import sources
from trainer.failures import CheckpointUnreadable, InvalidRecipe
from tunesmith.v1 import tune_pb2

ENGINE = "image/stable-diffusion-v1-5"
FIELDS = {field.name: field for field in tune_pb2.Hyperparameters.DESCRIPTOR.fields}


TABLE = {**SETTINGS, SNAPSHOT_EVERY: SNAPSHOT_INTERVAL}


def test_the_table_names_what_the_proto_names() -> None:
    assert list(TABLE) == list(FIELDS)


def test_how_often_a_snapshot_is_taken_stands_in_no_recipe() -> None:
    given: dict[str, Value] = {"rank": 8, "snapshot_every_seconds": 5.0}

    assert filled(ENGINE, given, "cpu") == filled(ENGINE, {"rank": 8}, "cpu")
    assert (snapshot_every(given), snapshot_every({})) == (5.0, 60.0)
    with pytest.raises(InvalidRecipe, match="snapshot_every_seconds is -1; at least 0 and at most 86400 was wanted"):
        snapshot_every({"snapshot_every_seconds": -1})


@pytest.mark.parametrize("name", FIELDS)
def test_range_and_kind_are_those_of_the_proto(name: str) -> None:
    setting, field = TABLE[name], FIELDS[name]
    rules = field.GetOptions().Extensions[validate_pb2.field]

    if field.enum_type is not None:
        values = [value.name for value in field.enum_type.values][1:]
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        assert setting.choices == tuple(value.removeprefix(prefix).lower() for value in values)
        return
    kinds: dict[int, tuple[type, Any]] = {
        FieldDescriptor.TYPE_INT32: (int, rules.int32),
        FieldDescriptor.TYPE_DOUBLE: (float, rules.double),
        FieldDescriptor.TYPE_BOOL: (bool, None),
    }
    kind, limits = kinds[field.type]
    assert setting.kind is kind
    if limits is not None:
        assert setting.open_below == limits.HasField("gt")
        assert setting.least == (limits.gt if limits.HasField("gt") else limits.gte)
        assert setting.most == limits.lte


@pytest.mark.parametrize("name", FIELDS)
def test_a_default_is_within_its_range(name: str) -> None:
    setting = TABLE[name]
    if setting.default is not None:
        assert setting.read(name, setting.default) == setting.default


def test_what_is_left_open_follows_from_the_rest() -> None:
    on_cpu, on_gpu = filled(ENGINE, {"rank": 8}, "cpu"), filled(ENGINE, {}, "cuda")

    assert (on_cpu["alpha"], on_cpu["precision"], on_cpu["deterministic"]) == (8.0, "fp32", True)
    assert (on_gpu["alpha"], on_gpu["precision"], on_gpu["deterministic"]) == (16.0, "bf16", False)
    assert (on_gpu["rank"], on_gpu["learning_rate"], on_gpu["min_snr_gamma"]) == (16, 1e-4, 5.0)


def test_what_is_given_is_kept() -> None:
    given: dict[str, Value] = {
        "rank": 4,
        "alpha": 1,
        "schedule": "linear",
        "deterministic": False,
        "caption_dropout": 0.0,
    }

    values = filled(ENGINE, given, "cpu")

    assert {name: values[name] for name in given} == given
    assert isinstance(values["alpha"], float)


def test_a_base_has_defaults_of_its_own_and_the_caller_the_last_word() -> None:
    of_base: dict[str, Value] = {"learning_rate": 1e-3, "rank": 8}

    values = filled(ENGINE, {"rank": 4}, "cpu", of_base)

    assert (values["learning_rate"], values["rank"], values["alpha"]) == (1e-3, 4, 4.0)


def test_a_base_with_a_wrong_default_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="unknown hyperparameter speed"):
        filled(ENGINE, {}, "cpu", {"speed": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
        ('{"hyperparameters": 3}', 'no object named "hyperparameters"'),
    ],
)
def test_a_base_with_an_unreadable_file_of_defaults_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert sources.hyperparameters(tmp_path) == {}
    (tmp_path / "tunesmith.json").write_text(text)

    with pytest.raises(CheckpointUnreadable, match=said):
        sources.hyperparameters(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rnak": 4}, "unknown hyperparameter rnak"),
        ({"rank": 0}, "rank is 0; at least 1 and at most 256 was wanted"),
        ({"rank": 4.5}, "a int was wanted"),
        ({"rank": True}, "a int was wanted"),
        ({"learning_rate": 0.0}, "more than 0 and at most 1"),
        ({"learning_rate": float("nan")}, "more than 0"),
        ({"schedule": "polynomial"}, "one of cosine, linear, constant"),
        ({"deterministic": 1}, "a bool was wanted"),
    ],
)
def test_what_is_wrong_is_refused_with_name_value_and_range(given: dict[str, Value], said: str) -> None:
    with pytest.raises(InvalidRecipe, match=said):
        filled(ENGINE, given, "cpu")

"""The JSON profile, on our own messages and on one made to hold every kind of field."""

from __future__ import annotations

import json as plain
import math
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.http import json
from gateway.http.fault import Fault
from gateway.http.json import MalformedError, dumps, from_json, loads, to_json
from gateway.http.profile import entry_of, is_map, is_synthetic, union_of
from gateway.http.well_known import STRUCT_DEPTH
from tests.servers.kinds import KINDS
from tunesmith.trainer.v1 import trainer_service_pb2
from tunesmith.v1 import asset_pb2, asset_service_pb2, tune_pb2, tune_service_pb2

FILES = (asset_pb2, asset_service_pb2, tune_pb2, tune_service_pb2, trainer_service_pb2)
TYPES = [KINDS] + [type_ for file in FILES for type_ in file.DESCRIPTOR.message_types_by_name.values()]
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
TEXTS = {FieldDescriptor.TYPE_BYTES: st.binary(max_size=9), FieldDescriptor.TYPE_STRING: st.text(max_size=9)}


# Any message of a type, as hypothesis likes it.

NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: math.copysign(1, number) > 0 or number != 0
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        # UNSPECIFIED means unset, and is read as that.
        return st.sampled_from(numbers if field.is_repeated or not field.has_presence else numbers[1:])
    if field.cpp_type in INTEGERS:
        return st.integers(*INTEGERS[field.cpp_type])
    return {
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(allow_nan=False, allow_infinity=False, width=32),
        FieldDescriptor.CPPTYPE_STRING: st.binary()
        if field.type == FieldDescriptor.TYPE_BYTES
        else st.text(max_size=9),
    }[field.cpp_type]


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Any:
    message: Any = GetMessageClass(descriptor)()
    if isinstance(message, Timestamp):
        message.seconds = draw(st.integers(-62135596800, 253402300799))
        message.nanos = draw(st.integers(0, 999_999_999) | st.sampled_from([0, 5_000, 120_000_000]))
        return message
    if isinstance(message, Duration):
        sign = draw(st.sampled_from([1, -1]))
        message.seconds, message.nanos = sign * draw(st.integers(0, 10**9)), sign * draw(st.integers(0, 999_999_999))
        return message
    if isinstance(message, struct_pb2.Struct):
        message.update(draw(st.dictionaries(st.text(max_size=3), VALUES, max_size=3)))
        return message
    chosen = [draw(st.sampled_from(list(oneof.fields))) for oneof in descriptor.oneofs if not is_synthetic(oneof)]
    for field in descriptor.fields:
        in_oneof = field.containing_oneof is not None and not is_synthetic(field.containing_oneof)
        if in_oneof and field not in chosen:
            continue
        must = in_oneof and union_of(descriptor) is not None
        if not must and (depth > 5 or draw(st.booleans())):
            continue
        fill(draw, message, field, depth)
    return message


def fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    def one(element: FieldDescriptor) -> Any:
        inner = element.message_type
        return draw(scalars(element) if inner is None else messages(inner, depth + 1))

    if is_map(field):
        key_field, value_field = entry_of(field)
        for _ in range(draw(st.integers(0, 2))):
            key = draw(scalars(key_field))
            if value_field.message_type is None:
                getattr(message, field.name)[key] = one(value_field)
            else:
                getattr(message, field.name)[key].CopyFrom(one(value_field))
    elif field.is_repeated:
        getattr(message, field.name).extend([one(field) for _ in range(draw(st.integers(0, 2)))])
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(one(field))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, one(field))


@pytest.mark.parametrize("descriptor", TYPES, ids=lambda descriptor: descriptor.full_name)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_is_written_is_read_back(descriptor: Descriptor, data: st.DataObject) -> None:
    message = data.draw(messages(descriptor))

    text = dumps(to_json(message))
    copy: Message = GetMessageClass(descriptor)()
    faults = from_json(loads(text), copy)

    assert faults == []
    assert copy == message


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_no_json_breaks_the_reader(value: Any) -> None:
    for make in (tune_service_pb2.CreateTuneRequest, asset_service_pb2.CreateAssetRequest):
        from_json({"details": value, "data": value, "metadata": value, "name": value}, make())


# Writing.


def test_every_key_is_there_and_what_is_unset_is_null() -> None:
    tune = tune_pb2.Tune(id="tune_1", status=tune_pb2.TUNE_STATUS_PENDING)
    tune.details.lora_tune.steps = 10
    tune.created_at.FromJsonString("2026-01-31T12:00:00.5Z")

    said = to_json(tune)

    assert set(said) == {field.name for field in tune_pb2.Tune.DESCRIPTOR.fields}
    assert said["status"] == "pending"
    assert said["created_at"] == "2026-01-31T12:00:00.500000Z"
    assert said["description"] == ""
    assert said["succeeded_at"] is said["result"] is said["progress"] is None
    assert said["output_lora_ids"] == []
    assert said["metadata"] == {}
    assert said["details"] == {
        "tune_type": "lora_tune",
        "base_checkpoint": None,
        "files": [],
        "resize_images": None,
        "seed": None,
        "steps": 10,
        "trigger_words": [],
        "hyperparameters": None,
    }


def test_a_tag_has_its_own_spelling_where_the_proto_says_so() -> None:
    presigned = asset_pb2.TransferApi(presigned_url=asset_pb2.PresignedUrlTransferApi(get_url="g", put_url="p"))
    none = asset_pb2.TransferApi(none=asset_pb2.NoTransferApi())

    assert to_json(presigned) == {"type": "presigned-url", "get_url": "g", "put_url": "p"}
    assert to_json(none) == {"type": "none"}
    assert to_json(asset_pb2.TransferApi()) == {"type": None}


def test_64_bit_integers_are_numbers() -> None:
    assert dumps(to_json(asset_pb2.Asset(size_bytes=2**53 + 1)))[:200].count(b'"size_bytes":9007199254740993') == 1


def test_what_json_has_no_number_for_is_null() -> None:
    for number in (math.nan, math.inf, -math.inf):
        assert to_json(tune_pb2.TuneProgress(loss=number))["loss"] is None
        assert to_json(tune_pb2.StepMetrics(loss=number))["loss"] is None


def test_a_number_of_a_struct_is_whole_where_it_was() -> None:
    asset = asset_pb2.Asset()
    asset.status_info.update({"width": 512, "ratio": 0.5, "list": [1, None, "a", True, {"b": {}}]})

    assert to_json(asset)["status_info"] == {"width": 512, "ratio": 0.5, "list": [1, None, "a", True, {"b": {}}]}
    assert isinstance(to_json(asset)["status_info"]["width"], int)


def test_an_enum_value_of_a_newer_server_is_its_number() -> None:
    tune = tune_pb2.Tune()
    tune.MergeFromString(b"\x38\x63")  # field 7, status = 99

    assert to_json(tune)["status"] == 99


# Reading.


def read(value: object) -> tuple[tune_service_pb2.CreateTuneRequest, list[Fault]]:
    message = tune_service_pb2.CreateTuneRequest()
    return message, from_json(value, message, ("body",))


def test_every_type_error_is_told_at_once_with_its_place() -> None:
    _, faults = read(
        {
            "name": 5,
            "continue_on_rejection": 1,
            "details": {
                "steps": "ten",
                "seed": True,
                "resize_images": "yes",
                "files": [{"file_id": None}, 7, {"file_id": []}, None],
                "trigger_words": {"a": 1},
                "base_checkpoint": [],
                "hyperparameters": {"rank": 2.5, "alpha": "1", "schedule": "cubic", "rnak": 4},
            },
            "metadata": {"a": 5, "b": None},
            "priority": 2**31,
        }
    )

    assert {fault.loc: fault.type for fault in faults} == {
        ("body", "name"): "string_type",
        ("body", "continue_on_rejection"): "bool_type",
        ("body", "details", "steps"): "int_type",
        ("body", "details", "seed"): "int_type",
        ("body", "details", "resize_images"): "bool_type",
        ("body", "details", "files", 1): "dict_type",
        ("body", "details", "files", 2, "file_id"): "string_type",
        ("body", "details", "files", 3): "dict_type",
        ("body", "details", "trigger_words"): "list_type",
        ("body", "details", "base_checkpoint"): "dict_type",
        ("body", "details", "hyperparameters", "rank"): "int_from_float",
        ("body", "details", "hyperparameters", "alpha"): "float_type",
        ("body", "details", "hyperparameters", "schedule"): "enum",
        ("body", "details", "hyperparameters", "rnak"): "extra_forbidden",
        ("body", "metadata", "a"): "string_type",
        ("body", "metadata", "b"): "string_type",
        ("body", "priority"): "less_than_equal",
    }


def test_unknown_keys_are_ignored_and_nulls_are_unset() -> None:
    message, faults = read(
        {"name": "a", "tune_type": "lora_tune", "description": None, "details": {"x": 1, "seed": None}}
    )

    assert faults == []
    assert not message.HasField("description")
    assert not message.details.lora_tune.HasField("seed")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(10, 10), (10.0, 10), (1e2, 100), (-0.0, 0), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63))],
)
def test_a_whole_number_is_an_integer_however_it_is_written(number: float, expected: int) -> None:
    message, faults = read({"details": {"seed": number}})

    assert faults == []
    assert message.details.lora_tune.seed == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("10", "int_type"),
        (True, "int_type"),
        (0.5, "int_from_float"),
        (2**63, "less_than_equal"),
        (-(2**63) - 1, "greater_than_equal"),
        (1e300, "less_than_equal"),
        (10**400, "less_than_equal"),
        (math.inf, "int_type"),
        ([1], "int_type"),
        ({}, "int_type"),
    ],
)
def test_what_is_no_integer_in_range_is_refused(value: object, kind: str) -> None:
    assert [fault.type for fault in read({"details": {"seed": value}})[1]] == [kind]


@pytest.mark.parametrize(
    ("value", "kind"),
    [("1", "float_type"), (True, "float_type"), (10**400, "finite_number"), (math.inf, "finite_number")],
)
def test_what_is_no_finite_number_is_refused(value: object, kind: str) -> None:
    assert [f.type for f in read({"details": {"hyperparameters": {"alpha": value}}})[1]] == [kind]


def test_a_lone_surrogate_is_refused_in_a_value_and_in_a_key() -> None:
    _, faults = read(loads(b'{"name": "\\ud800", "metadata": {"\\udfff": "x", "a": "\\ud83d\\ude00"}}'))

    assert [(fault.loc, fault.type) for fault in faults] == [
        (("body", "name"), "string_unicode"),
        (("body", "metadata", "\udfff"), "string_unicode"),
    ]


def test_a_wrong_tag_is_refused_with_what_was_expected() -> None:
    message = asset_service_pb2.CreateAssetRequest()

    faults = from_json({"data": {"asset_type": "picture"}}, message, ("body",))

    assert [(fault.loc, fault.type) for fault in faults] == [(("body", "data", "asset_type"), "union_tag_invalid")]
    assert "'file'" in faults[0].msg
    assert "'latent'" in faults[0].msg


def test_an_absent_tag_stands_for_the_only_arm() -> None:
    message, faults = read({"details": {"steps": 3}})

    assert faults == []
    assert message.details.lora_tune.steps == 3


def test_an_absent_tag_of_several_arms_is_missing() -> None:
    faults = from_json({"data": {"file_format": "png"}}, asset_service_pb2.CreateAssetRequest(), ("body",))

    assert [(fault.loc, fault.type) for fault in faults] == [(("body", "data", "asset_type"), "missing")]


def test_an_arm_without_keys_is_set_nevertheless() -> None:
    message = asset_service_pb2.CreateAssetRequest()

    assert from_json({"data": {"asset_type": "file"}}, message) == []
    assert message.data.WhichOneof("data") == "file"


def test_a_key_that_occurs_twice_is_refused() -> None:
    _, faults = read(loads(b'{"name": "a", "name": "b", "x": 1, "x": 2, "details": {"steps": 1, "steps": 2}}'))

    assert [fault.loc for fault in faults] == [("body", "details", "steps"), ("body", "name")]


def test_two_arms_of_a_plain_oneof_are_refused() -> None:
    message = trainer_service_pb2.Checkpoint()

    faults = from_json({"builtin": {"name": "a"}, "hugging_face": {"repository": "b"}}, message)

    assert [fault.type for fault in faults] == ["value_error"]


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31",
        "2026-13-31T00:00:00Z",
        "2026-01-31T00:00:00",
        "0000-01-01T00:00:00Z",
        "2026-01-31T25:00:00Z",
        "now",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    faults = from_json({"created_at": text}, tune_pb2.TuneEvent())

    assert [(fault.loc, fault.type) for fault in faults] == [(("created_at",), "datetime_parsing")]


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    event = tune_pb2.TuneEvent()

    assert from_json({"created_at": "2026-01-31T12:00:00.25+05:30"}, event) == []
    assert to_json(event)["created_at"] == "2026-01-31T06:30:00.250000Z"


def test_a_struct_may_be_deep_but_not_deeper_than_protobuf_parses() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"a": nested(depth - 1)} if depth else {}

    fine, too_deep = asset_pb2.Asset(), asset_pb2.Asset()

    assert from_json({"status_info": nested(STRUCT_DEPTH)}, fine) == []
    assert asset_pb2.Asset.FromString(fine.SerializeToString()) == fine
    assert [f.type for f in from_json({"status_info": nested(STRUCT_DEPTH + 1)}, too_deep)] == ["value_error"]


# Text.


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b"[Infinity]",
        b"-Infinity",
        b"1" * 10_000,
        b"[" * 100,
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'"a\nb"',
        b'{"a":1} {"b":2}',
        b'["\\"' * 200_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        loads(text)

    assert caught.value.fault.type == "json_invalid"
    assert caught.value.fault.loc[0] == "body"
    assert isinstance(caught.value.fault.loc[1], int)


def test_the_place_of_malformed_json_is_where_the_parser_stopped() -> None:
    with pytest.raises(MalformedError) as caught:
        loads(b'{"name": tru}')

    assert caught.value.fault.loc == ("body", 9)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ('{"é\\"NaN": "NaN", "b": [1, NaN, -Infinity]}', 27),
        ('{"Infinity": -Infinity}', 13),
        ("NaN", 0),
    ],
)
def test_the_place_of_a_number_that_is_none_is_where_it_stands(text: str, offset: int) -> None:
    with pytest.raises(MalformedError) as caught:
        loads(text.encode())

    assert caught.value.fault.loc == ("body", offset)
    assert text[offset:].startswith(caught.value.fault.msg.removeprefix("JSON decode error: ").split()[0])


@pytest.mark.parametrize("before", ["1.5", "1" * 5000 + ".5", "1e5", '"' + "1" * 5000 + '"', "1." + "0" * 5000])
def test_the_place_of_an_integer_with_too_many_digits_is_where_it_stands(before: str) -> None:
    text = f'{{"a": {before}, "b": {"1" * 5000}}}'

    with pytest.raises(MalformedError) as caught:
        loads(text.encode())

    assert caught.value.fault.loc == ("body", len(text) - 5001)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("digits", ["1" * 2_000_000 + ".5", "1" * 2_000_000 + "e5", "-1" * 1_000_000, "1.1" * 600_000])
def test_no_number_takes_longer_to_find_than_to_read(digits: str) -> None:
    """It once took hours: from each digit on the rest was looked at again, and nobody else was answered meanwhile."""
    with pytest.raises(MalformedError):
        loads(f'{{"b": {"1" * 5000}, "a": {digits}}}'.encode())
    with pytest.raises(MalformedError):
        loads(f'{{"a": {digits}, "b": {"1" * 5000}}}'.encode())


def test_brackets_in_strings_are_not_nesting() -> None:
    text = plain.dumps({"a": "[{" * 1000, "b": ['\\"[' * 100]}).encode()

    assert json.loads(text) == plain.loads(text)


def test_many_brackets_side_by_side_are_not_nesting() -> None:
    text = plain.dumps([[] for _ in range(10_000)]).encode()

    assert json.loads(text) == plain.loads(text)

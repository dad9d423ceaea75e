"""Golden JSON of every message of the stream: whoever renames a field, an enum value or an arm sees it here.

One file for each arm, `event` and `assign` one for each of their own arms. Field numbers are `buf breaking`'s.
"""

from collections.abc import Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tunesmith.trainer.v1 import trainer_service_pb2 as pb

GOLDEN = Path(__file__).with_name("golden")
KINDS: dict[str, type[Message]] = {"trainer_message": pb.TrainerMessage, "gateway_message": pb.GatewayMessage}
FILES = sorted(GOLDEN.glob("*/*.json"))
OMITTED = {"tunesmith.v1.LoraTune.files"}  # an Assign's files are its pictures


def read(path: Path) -> Message:
    return json_format.Parse(path.read_text(), KINDS[path.parent.name]())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_message_reads_and_writes_its_golden_json(path: Path) -> None:
    message = read(path)

    again = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=2) + "\n"

    assert again == path.read_text()
    assert message.FromString(message.SerializeToString()) == message


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name == "trainer_message"], ids=lambda path: path.stem
)
def test_trainers_message_is_within_the_rules_that_the_gateway_holds_it_to(path: Path) -> None:
    protovalidate.validate(read(path))


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_has_a_golden_file_named_by_it(kind: str) -> None:
    arms = {arm.name for arm in KINDS[kind].DESCRIPTOR.oneofs_by_name["message"].fields}

    found = {path.stem.partition(".")[0]: read(path) for path in FILES if path.parent.name == kind}

    assert set(found) == arms
    assert all(message.WhichOneof("message") == arm for arm, message in found.items())


def test_every_field_stands_in_some_golden_file() -> None:
    wanted = {field for kind in (pb.TrainerMessage, pb.GatewayMessage) for field in reachable(kind.DESCRIPTOR)}

    shown = {field for path in FILES for field in set_fields(read(path))}

    assert wanted - shown == OMITTED | {f"tunesmith.v1.LoraTuneFile.{name}" for name in ("file_id", "caption")}


def reachable(descriptor: Descriptor, seen: set[str] | None = None) -> Iterator[str]:
    """Full names of all fields that can stand somewhere in a message."""
    seen = set() if seen is None else seen
    if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        yield field.full_name
        if field.message_type is not None:
            yield from reachable(field.message_type, seen)


def set_fields(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        yield field.full_name
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from set_fields(inner)

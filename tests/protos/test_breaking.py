"""What was released is not taken back: buf holds the protos to it, and a route leads where it led."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from tunesmith.v1 import asset_service_pb2, tune_service_pb2

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "protos/released.binpb.gz"
Change = Callable[[FileDescriptorProto], None]


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(gzip.decompress(RELEASED.read_bytes()))


def file_of(descriptors: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in descriptors.file if file.name == name)


def breaking(image: Path) -> tuple[int, str]:
    """What scripts/check runs."""
    command = ["buf", "breaking", str(image), "--path", "tunesmith", "--against", str(RELEASED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def drop_field(file: FileDescriptorProto) -> None:
    del file.message_type[0].field[2]


def rename_field(file: FileDescriptorProto) -> None:
    file.message_type[0].field[2].name = "title"
    file.message_type[0].field[2].json_name = "title"


def retype_field(file: FileDescriptorProto) -> None:
    file.message_type[0].field[2].type = FieldDescriptorProto.TYPE_INT64


def drop_enum_value(file: FileDescriptorProto) -> None:
    del file.enum_type[1].value[5]


def add_field(file: FileDescriptorProto) -> None:
    file.message_type[0].field.add(name="mood", number=99, type=FieldDescriptorProto.TYPE_STRING, label=1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop_field, 'Previously present field "3" with name "name" on message "Tune" was deleted'),
        (rename_field, 'Field "3" with name "title" on message "Tune" changed'),
        (retype_field, 'Field "3" with name "name" on message "Tune" changed type'),
        (drop_enum_value, 'Previously present enum value "5" on enum "TuneStatus" was deleted'),
    ],
)
def test_what_callers_rely_on_cannot_be_taken_away(tmp_path: Path, change: Change, complaint: str) -> None:
    descriptors = released()
    change(file_of(descriptors, "tunesmith/v1/tune.proto"))
    (tmp_path / "image.binpb").write_bytes(descriptors.SerializeToString())

    code, said = breaking(tmp_path / "image.binpb")

    assert code != 0
    assert complaint in said


def test_an_rpc_cannot_be_taken_away(tmp_path: Path) -> None:
    descriptors = released()
    del file_of(descriptors, "tunesmith/v1/tune_service.proto").service[0].method[6]
    (tmp_path / "image.binpb").write_bytes(descriptors.SerializeToString())

    code, said = breaking(tmp_path / "image.binpb")

    assert code != 0
    assert 'Previously present RPC "ListTuneEvents" on service "TuneService" was deleted' in said


def test_what_is_added_breaks_nothing(tmp_path: Path) -> None:
    descriptors = released()
    add_field(file_of(descriptors, "tunesmith/v1/tune.proto"))
    (tmp_path / "image.binpb").write_bytes(descriptors.SerializeToString())

    assert breaking(tmp_path / "image.binpb") == (0, "")


def test_check_holds_the_protos_to_the_release() -> None:
    assert (
        'buf breaking "$image" --path tunesmith --against protos/released.binpb.gz'
        in (ROOT / "scripts/check").read_text()
    )


def test_every_released_route_still_leads_to_its_rpc() -> None:
    """buf knows no HTTP rules."""
    present = {
        method.full_name: method.GetOptions().Extensions[annotations_pb2.http].SerializeToString(deterministic=True)
        for module in (tune_service_pb2, asset_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    wanted = {
        f"{file.package}.{service.name}.{method.name}": method.options.Extensions[
            annotations_pb2.http
        ].SerializeToString(deterministic=True)
        for file in released().file
        if file.package == "tunesmith.v1"
        for service in file.service
        for method in service.method
    }

    assert len(wanted) >= 12
    assert wanted.items() <= present.items()

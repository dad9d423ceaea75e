"""Generates Python from the .proto files, beside each one. Called by hatchling when the package is built or installed
editable, and by scripts/protos; knows nothing of what the messages mean."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc_tools
from google.api import annotations_pb2
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).resolve().parent
VALIDATE = "buf/validate/validate.proto"
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
# What callers see, with the comments that generated modules lack: gateway/http/comments.py reads it.
COMMENTED = "tunesmith/v1"
DESCRIPTORS = f"{COMMENTED}/descriptors.binpb"
# The protos of the last release, which scripts/check holds the present ones against.
RELEASED = PROTOS / "released.binpb.gz"


class ProtoBuildHook(BuildHookInterface[Any]):
    """Runs before hatchling gathers the wheel's files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates; the modules are then picked up as artifacts."""
        generate()


def generate() -> None:
    """Generates message and service modules with their stubs for every .proto below this folder, and DESCRIPTORS.

    Raises:
        subprocess.CalledProcessError: protoc found a fault in a .proto and has printed it.
    """
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in ours if name.endswith("_service.proto")]
    with tempfile.TemporaryDirectory() as folder:
        validate = validate_descriptors(Path(folder))
        _protoc(validate, "--python_out=.", "--mypy_out=.", VALIDATE)
        _protoc(validate, "--python_out=.", "--mypy_out=.", *ours)
        _protoc(validate, "--grpc_python_out=.", "--mypy_grpc_out=.", *services)
        commented = [name for name in ours if name.startswith(f"{COMMENTED}/")]
        _protoc(validate, "--include_source_info", f"--descriptor_set_out={DESCRIPTORS}", *commented)


def image(path: Path) -> None:
    """Writes a descriptor set of every .proto and all it imports, with comments: what buf lints and compares."""
    ours = sorted(str(proto.relative_to(PROTOS)) for proto in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        validate = validate_descriptors(Path(folder))
        flags = ("--include_imports", "--include_source_info", f"--descriptor_set_out={path.resolve()}")
        _protoc(validate, *flags, *ours)


def release() -> None:
    """Makes the present protos the released ones. Called by scripts/protos --release, once a release."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    with tempfile.TemporaryDirectory() as folder:
        image(Path(folder) / "image.binpb")
        descriptors = FileDescriptorSet.FromString((Path(folder) / "image.binpb").read_bytes())
    for file in descriptors.file:
        file.ClearField("source_code_info")  # comments are no promise
    RELEASED.write_bytes(gzip.compress(descriptors.SerializeToString(deterministic=True), mtime=0))


def validate_descriptors(folder: Path) -> Path:
    """Writes the descriptor set of buf/validate/validate.proto, which the protovalidate wheel has in its own module.

    So no third-party .proto is copied into this tree. protoc wants the imports in the same set.
    """
    from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
    from protovalidate._gen.buf.validate import validate_pb

    descriptors = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    descriptors.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    path = folder / "validate.binpb"
    path.write_bytes(descriptors.SerializeToString())
    return path


def _protoc(descriptors: Path, *arguments: str) -> None:
    googleapis = Path(annotations_pb2.__file__).parents[2]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = ["-I.", f"-I{googleapis}", f"-I{well_known}", f"--descriptor_set_in={descriptors}"]
    # Beside the interpreter in a virtual environment; in the isolated environment of a build only PATH leads to them.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    plugins = [f"--plugin={name}={shutil.which(name, path=places)}" for name in PLUGINS]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *includes, *plugins, *arguments], cwd=PROTOS, check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--release"]:
        release()
    elif len(sys.argv) == 2:
        image(Path(sys.argv[1]))
    else:
        generate()

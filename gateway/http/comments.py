"""What the .proto files say of services, rpcs, messages, fields and enum values, as prose.

Called by openapi's parts. The comments come from the descriptor set that protos/build.py leaves beside the generated
modules, which have none themselves; of other protos nothing is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

_Path = tuple[int, ...]
_ITEM = re.compile(r"\s*(?:\d+\.|-) ")  # a line that begins a list's item stays a line

# Field numbers of descriptor.proto, of which source locations' paths are made.
_FILE = {"message_type": 4, "enum_type": 5, "service": 6}
_MESSAGE = {"field": 2, "nested_type": 3, "enum_type": 4, "oneof_decl": 8}
_MEMBERS = {"value": 2, "method": 2}


def comment(full_name: str) -> str:
    """Returns the comment above the element, its paragraphs unwrapped; empty where there is none.

    Args:
        full_name: `tunesmith.v1.Tune.name`; of an enum's value, `tunesmith.v1.TuneStatus.TUNE_STATUS_PENDING`.
    """
    return "\n\n".join(unwrapped(paragraph) for paragraph in raw(full_name).split("\n\n")).strip()


def raw(full_name: str) -> str:
    """Returns the comment as it is written, line by line."""
    return _comments().get(full_name, "")


def unwrapped(paragraph: str) -> str:
    """Returns a paragraph as one line, but for the items of a list."""
    text = ""
    for line in paragraph.splitlines():
        text += ("\n" if _ITEM.match(line) else " ") + line.strip()
    return text.strip()


@cache
def _comments() -> dict[str, str]:
    found: dict[str, str] = {}
    text = resources.files("tunesmith.v1").joinpath("descriptors.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(text).file:
        names = dict(_names(file, file.package, (), _FILE))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name is not None and location.leading_comments:
                found[name] = "\n".join(line.removeprefix(" ") for line in location.leading_comments.splitlines())
    return found


def _names(element: Any, name: str, path: _Path, numbers: dict[str, int]) -> Iterator[tuple[_Path, str]]:  # noqa: ANN401
    """Yields path and full name of everything inside a file, message, enum or service."""
    for kind, number in numbers.items():
        inside: Sequence[Any] = getattr(element, kind, ())
        for index, one in enumerate(inside):
            here, full_name = (*path, number, index), f"{name}.{one.name}"
            yield here, full_name
            yield from _names(one, full_name, here, _MESSAGE if kind in ("message_type", "nested_type") else _MEMBERS)

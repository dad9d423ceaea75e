"""One thing wrong with a request, at its place. Made by what reads requests, told by errors; knows no message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.http.scalars import Unreadable, shown

Loc = tuple[str | int, ...]
"""Where in a request: ("body", "details", "files", 1, "file_id")."""

# More are not read for: a body of some megabytes may hold a million faults, and nobody reads so many.
MOST_FAULTS = 10_000


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request, as the errors of the contract tell it."""

    loc: Loc
    msg: str
    """For people."""
    type: str
    """A stable word in pydantic's vocabulary: "missing", "int_type", "enum"."""
    is_read: bool = False
    """Whether the message has the value all the same, so that rules on it say something new."""


# (message, value of the key or object, where the message stands, faults). Any: see writing.Writer.
Reader = Callable[[Any, Any, Loc, list[Fault]], None]


def unfit(reason: Unreadable, value: object, loc: Loc, *, is_secret: bool = False) -> Fault:
    """The fault of a value, which is told with it."""
    return Fault(loc, reason.msg if is_secret else f"{reason.msg}; got {shown(value)}", reason.kind)


def other_than(wanted: str, kind: str, value: object, loc: Loc) -> Fault:
    """The fault of a value of another JSON type than "an object", say."""
    return unfit(Unreadable(f"Input should be {wanted}", kind), value, loc)

"""Makes ids: a prefix that says what it is and a sortable, unguessable rest. Used by whoever inserts rows."""

from __future__ import annotations

from typing import Literal

from typeid import TypeID


def new_id(prefix: Literal["tune", "asset", "key", "hook", "msg"]) -> str:
    """Such as "tune_01h455vb4pex5vsknk084sn02q": a TypeID, which is a UUIDv7, so that ids sort by age to the
    millisecond.
    """
    return str(TypeID(prefix=prefix))

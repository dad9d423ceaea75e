"""Refuses an order for all that is wrong with it at once. Called by the commands that take several values."""

from __future__ import annotations

from collections.abc import Iterable


def refuse(faults: Iterable[str | None]) -> None:
    """Raises ValueError, with a line for each, where there is any that is not None."""
    if lines := [fault for fault in faults if fault is not None]:
        raise ValueError("\n".join(lines))

"""Sets what a command lists in columns. Called by the commands that list; knows nothing of what they list."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"  # in the place of what is not there


def lines(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row, its cells one below the other's."""
    plain = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in plain
    )


def _plain(cell: str) -> str:
    """What a terminal would obey instead of showing it is escaped: trainers and old rows say what they like."""
    return cell if cell.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in cell)

"""Reads the paths of a command's options. Called by the command line for each of them: by itself it would take an empty
one, such as of a variable that is not set, for the current folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cyclopts


def given(_: type, tokens: Sequence[cyclopts.Token]) -> Path:
    """The path. ValueError: it is empty."""
    [token] = tokens
    if not token.value:
        raise ValueError("'': a path was wanted; . is the current folder")
    return Path(token.value)


GIVEN = cyclopts.Parameter(converter=given)

"""Reads the whole numbers of a command's options. Called by the command line for each of them: by itself it would round
0.4 to 0, which stops a tenant, and take 1_0 for 10.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cyclopts


def whole(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """The number. ValueError: it is none, or not a whole one."""
    [token] = tokens
    if re.fullmatch(r"[+-]?[0-9]{1,18}", token.value) is None:  # more digits than any of our columns holds
        raise ValueError(f"{token.value!r}: a whole number was wanted")
    return int(token.value)


WHOLE = cyclopts.Parameter(converter=whole)

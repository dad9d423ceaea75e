"""Waiting times between tries: they double, and each is jittered, so that many clients do not call in step."""

from __future__ import annotations

import math
import random


class Backoff:
    """Seconds to wait before the next try: between half and all of a time that doubles from `first` to `most`."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._tries = 0

    def next(self, most: float = math.inf) -> float:
        """The next wait, seconds; at most `most`, where this one has less time than others."""
        ceiling = min(self._most, most, self._first * 2.0**self._tries)
        self._tries = min(self._tries + 1, 32)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, no secret)

    def reset(self) -> None:
        """It worked: the next fault starts from the beginning."""
        self._tries = 0

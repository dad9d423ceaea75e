"""Chooses the failpoints that the next gateway is started with. Called by the stage.

What has fired least is armed first: so a run comes by as many as it has the time for, and a long one by all.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from store.failpoints import POINTS

ARMED = 0.8  # of the starts
AT_A_TIME = 3  # points armed in one process
ACTIONS = {"kill": 3, "away": 4, "pause": 1}  # how often each
CHANCE = 0.5
#: Reached several times a second by an idle service, whose gateways would not live long otherwise.
OFTEN = {"renew": 0.02, "reap": 0.02, "claim": 0.1, "progress": 0.1}


class Arming:
    """Writes the variable's values.

    Args:
        hits: The file where what fires is noted.
        chance: The run's.
    """

    def __init__(self, hits: Path, chance: random.Random) -> None:
        self._hits = hits
        self._chance = chance

    def fired(self) -> dict[str, int]:
        """How often each point has fired so far; all points are named."""
        lines = self._hits.read_text().splitlines() if self._hits.exists() else []
        counted = Counter(line.split()[0] for line in lines)
        return {point: counted[point] for point in POINTS}

    def next(self) -> str:
        """The value for one more start; sometimes empty, for a gateway that fails by no fault of its own."""
        if self._chance.random() >= ARMED:
            return ""
        fired = self.fired()
        points = sorted(POINTS, key=lambda point: (fired[point], self._chance.random()))[:AT_A_TIME]
        charges = ",".join(f"{point}={self._action()}:{_chance_of(point)}" for point in points)
        return f"{charges};seed={self._chance.randrange(2**32)};hits={self._hits}"

    def _action(self) -> str:
        return self._chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]


def _chance_of(point: str) -> float:
    return OFTEN.get(point.partition(".")[0], CHANCE)

"""Named places at which a test lets this process die, wait, or not hear that its commit went through: on both sides of
each commit of claim and result, and between the steps of taking up an object. Reached by database and by
gateway/results; armed by gateway.__main__ alone, and only where an environment variable says so.

    TUNESMITH_FAILPOINTS="finish.committed=kill:0.2,claim.before=away:0.1;seed=7;hits=/path/of/a/file"

    kill    this process ends at once, as by SIGKILL
    away    DatabaseAway: at .before nothing is committed; at .committed all is, and its caller does not know
    pause   nothing happens for PAUSE seconds, with all locks held

The number is how likely it is each time that the point is reached; without one it is certain. What fired is appended
to the file `hits`, before it fires: a line "point action" each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from store.errors import DatabaseAway

VARIABLE = "TUNESMITH_FAILPOINTS"
PAUSE = 1.5  # seconds

#: Transactions with a name: database.write("claim") reaches claim.before and claim.committed.
TRANSACTIONS = (
    "submit",
    "cancel",
    "claim",
    "accept",
    "withdraw",
    "renew",
    "restate",
    "reap",
    "progress",
    "event",
    "recipe",
    "snapshot",
    "finish",
    "fail",
    "let_go",
)
#: Steps of taking up a report in gateway/results: its object lies under its final key, is hashed, all is committed and
#: nothing is acknowledged yet.
STEPS = ("object.moved", "object.hashed", "report.recorded")
POINTS = (*(f"{name}.{side}" for name in TRANSACTIONS for side in ("before", "committed")), *STEPS)
ACTIONS = ("kill", "away", "pause")

_ARMING = re.compile(r"(?P<point>[a-z_.]+)=(?P<action>[a-z]+)(?::(?P<chance>[0-9.]+))?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Charge:
    """What happens at an armed point."""

    action: str
    """One of ACTIONS."""
    chance: float
    """0 to 1, each time that the point is reached."""


class Armed:
    """The points that are armed in this process."""

    def __init__(self, charges: Mapping[str, Charge], seed: int, hits: str | None) -> None:
        self._charges = charges
        self._random = random.Random(seed)  # noqa: S311  (repeatable, no secret)
        self._hits = hits

    async def reach(self, point: str) -> None:
        """Fires, or does not."""
        assert point in POINTS, f"{point} is no failpoint"
        charge = self._charges.get(point)
        if charge is None or self._random.random() >= charge.chance:
            return
        log.warning("The failpoint %s fires: %s", point, charge.action, extra={"action": "failpoint.fired"})
        self._note(f"{point} {charge.action}\n")
        match charge.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "away":
                raise DatabaseAway(f"the failpoint {point} fired")
            case "pause":
                await asyncio.sleep(PAUSE)

    def _note(self, line: str) -> None:
        """With the kernel before anything else happens: it outlives this process, whose buffers would not."""
        if self._hits is None:
            return
        descriptor = os.open(self._hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


#: None: nothing is armed, and a point costs a look at this name. Written by arm().
_armed: Armed | None = None


async def reach(point: str) -> None:
    """A process is at this point."""
    if _armed is not None:
        await _armed.reach(point)


def arm(spec: str) -> None:
    """Arms this process as the variable's value says; empty: nothing is armed.

    Raises:
        ValueError: The value is none of the form above, or names what there is not.
    """
    global _armed
    _armed = read(spec) if spec else None
    if _armed is not None:
        log.warning("FAILPOINTS ARE ARMED, to fail on purpose: %s", spec, extra={"action": "failpoints.armed"})


def read(spec: str) -> Armed:
    """The variable's value. ValueError as arm() says."""
    points, *options = spec.split(";")
    charges = dict(_charge(each) for each in points.split(",") if each)
    said = dict(option.partition("=")[::2] for option in options)
    if unknown := set(said) - {"seed", "hits"}:
        raise ValueError(f"{sorted(unknown)} is no option of failpoints; wanted seed=NUMBER or hits=PATH")
    seed = said.get("seed", "0")
    if not seed.isdecimal():
        raise ValueError(f"seed={seed}: wanted a whole number")
    return Armed(charges, int(seed), said.get("hits"))


def _charge(text: str) -> tuple[str, Charge]:
    match = _ARMING.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} arms nothing; wanted POINT=ACTION or POINT=ACTION:CHANCE")
    if match["point"] not in POINTS:
        raise ValueError(f"{match['point']} is no failpoint; wanted one of {', '.join(POINTS)}")
    if match["action"] not in ACTIONS:
        raise ValueError(f"{text}: wanted one of {', '.join(ACTIONS)}")
    try:
        chance = float(match["chance"] or 1)
    except ValueError:
        chance = -1.0
    if not 0 < chance <= 1:
        raise ValueError(f"{text}: wanted a chance above 0 and at most 1")
    return match["point"], Charge(match["action"], chance)

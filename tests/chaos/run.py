"""One chaos run, from an empty folder to its report. Called by `scripts/chaos` and by the test that CI runs.

calm     twins: each recipe once, undisturbed
storm    callers act, faults strike and heal, what has ended is started again
calm     everything is healed; every accepted tune must end within a bound
check    leftovers are swept, the history is read and held to what is promised
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gateway.sweeper import Sweeper
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from tests.chaos import faults, reading
from tests.chaos.arming import Arming
from tests.chaos.callers import Callers, at_work
from tests.chaos.checker import violations
from tests.chaos.faults import Fault, Healing, NotNow
from tests.chaos.history import History, Tune, attempts, repeated
from tests.chaos.stage import SECRET, Stage
from tests.servers.photographs import photographs

PACE = 2.5  # seconds between two faults, on average
DEADLY_EVERY = 5.0  # seconds; if fewer attempts than that lose their engine, the storm goes on
DEADLY_ENOUGH = 25  # of these, however long the storm: it is short ones that may disturb too little
LONGER = 2  # times its length, at most
BOUND = 150.0  # seconds after the last fault in which every accepted tune must end
MORE_THAN_TRAINERS = 2  # tunes that are to be under way, so that some always wait
#: What a trainer says of each attempt that a gateway lets it go on with.
READOPTED = re.compile(r"'(tune_\w+)\.\d+': 'HELD_ACTION_CONTINUE'")


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    seconds: float
    """That faults strike; more where the host is slow."""
    seed: int
    """Of all that is left to chance here; what two processes make of it on a busy host is not."""
    gateways: int = 2
    trainers: int = 3
    database: str = "postgresql"
    """Or "sqlite", for one gateway."""


def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Runs it in an empty folder. Returns the report."""
    arming = Arming(folder / "failpoints", random.Random(f"arming {plan.seed}"))
    struck: Counter[str] = Counter()
    with Stage(folder, gateways=plan.gateways, trainers=plan.trainers, database=plan.database) as stage:
        wanted = plan.trainers + MORE_THAN_TRAINERS
        callers = Callers(stage, wanted, random.Random(f"callers {plan.seed}"))
        (folder / "pictures").mkdir()
        callers.upload(photographs(folder / "pictures")[:2])
        _say("the twins are made")
        callers.make_twins()
        stage.arming = arming
        stage.restart_gateways()
        with at_work(callers):
            _storm(stage, plan, struck)
            _say("all is healed")
            stage.heal()
        callers.wait_for_ends(BOUND)
        _say("the history is read")
        history = asyncio.run(_read(stage, callers))
        (folder / "history.json").write_text(json.dumps(asdict(history), default=list))
        return _report(plan, history, callers, stage, {**struck, **callers.acts}, arming.fired())


def _storm(stage: Stage, plan: Plan, struck: Counter[str]) -> None:
    chance = random.Random(f"faults {plan.seed}")
    dealt, kept = faults.dealt(stage, chance), list[Fault]()
    healings: list[tuple[float, Healing]] = []
    end = time.monotonic() + plan.seconds
    due = time.monotonic()
    while time.monotonic() < end or (_is_slow(struck, plan) and time.monotonic() < end + LONGER * plan.seconds):
        healings = _heal_what_is_due(healings)
        stage.keep_up()
        if time.monotonic() >= due:
            fault, healing = _strike(stage, chance, dealt, kept)
            now = time.monotonic()
            struck[faults.kind(fault)] += 1
            _say(f"{end - now:.0f} s left: {faults.kind(fault)}")
            if healing is not None:
                healings.append((now + healing.after, healing))
            due = now + min(chance.expovariate(1 / PACE), 2 * PACE)
        time.sleep(0.05)  # the storm's own rhythm
    for _, healing in healings:
        healing.heal()


def _is_slow(struck: Counter[str], plan: Plan) -> bool:
    """Whether too few attempts have lost their engine so far: on a busy host it takes long to come up again."""
    deadly = sum(struck[faults.kind(fault)] for fault in faults.DEADLY)
    return deadly < min(plan.seconds / DEADLY_EVERY, DEADLY_ENOUGH)


def _strike(
    stage: Stage, chance: random.Random, dealt: Iterator[Fault], kept: list[Fault]
) -> tuple[Fault, Healing | None]:
    """The first fault that finds something to strike at. One of each kind that does not is kept for later."""
    for fault in itertools.chain(tuple(kept), dealt):
        try:
            healing = fault(stage, chance)
        except NotNow:
            if fault not in kept:
                kept.append(fault)
            continue
        if fault in kept:
            kept.remove(fault)
        return fault, healing
    raise AssertionError("the deck never ends")


def _heal_what_is_due(healings: list[tuple[float, Healing]]) -> list[tuple[float, Healing]]:
    """Those that are left."""
    now = time.monotonic()
    for when, healing in healings:
        if when <= now:
            healing.heal()
    return [(when, healing) for when, healing in healings if when > now]


async def _read(stage: Stage, callers: Callers) -> History:
    """Sweeps first, as the gateways would by and by: what the rows do not name must be gone after it."""
    database = await stage.open_database()
    try:
        objects = LocalObjects(stage.objects, Signer("http://nobody", SECRET.encode()))
        await Sweeper(database, objects, leftover_seconds=0).sweep()
        history = await reading.read(
            database, objects, accepted=callers.accepted, cancels=frozenset(callers.cancels), seen=callers.seen
        )
    finally:
        await database.close()
    of_tune = {lora.tune_id: lora.sha256 for lora in history.loras}
    return replace(history, twins={tune.recipe: of_tune.get(tune.id, "") for tune in history.tunes if _is_twin(tune)})


def _report(
    plan: Plan, history: History, callers: Callers, stage: Stage, struck: dict[str, int], fired: dict[str, int]
) -> dict[str, Any]:
    tunes = [tune for tune in history.tunes if not _is_twin(tune)]
    of_all = [attempt for tune in tunes for attempt in attempts(tune)]
    logs = "\n".join(part.daemon.log() for part in stage.trainers)
    readopted = READOPTED.findall(logs)
    disturbed = [tune for tune in tunes if len(attempts(tune)) > 1 or tune.id in readopted]
    return {
        "seed": plan.seed,
        "faults": dict(sorted(struck.items())),
        "accepted": len(
            {tune_id for _, tune_id in callers.accepted} - {tune.id for tune in history.tunes if _is_twin(tune)}
        ),
        "ended": dict(sorted(Counter(tune.state for tune in tunes).items())),
        "expired": sum(attempt.is_of_an_expired_lease for attempt in of_all),
        "readopted": len(readopted),
        "resumed": sum(attempt.is_resumed for attempt in of_all),
        "twins_compared": sum(tune.state == "succeeded" for tune in disturbed),
        "steps_repeated": sum(map(repeated, tunes)),
        "failpoints": fired,
        "violations": [*violations(history), *_disturbed_twins(history), *callers.wrong],
    }


def _disturbed_twins(history: History) -> list[str]:
    """The calm must have been one, or the twins prove nothing."""
    twins = [tune for tune in history.tunes if _is_twin(tune)]
    return [
        f"the twin {tune.name} is {tune.state} after {tune.lease_epoch} claims"
        for tune in twins
        if (tune.state, tune.lease_epoch) != ("succeeded", 1)
    ]


def _is_twin(tune: Tune) -> bool:
    return tune.name == f"{tune.recipe}-0"


def _say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)

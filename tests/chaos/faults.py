"""The faults: each strikes at something of the stage, and says when and how it heals. Called by run.py.

Wall clocks are left alone. A trainer goes by its monotonic clock and the database's decides; what a trainer reads the
time of day for are its log's lines and the age of files on its own disk.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.chaos.stage import Part, Stage, resume
from tests.servers.proxy import Way


class NotNow(Exception):
    """There is nothing there that it could strike at."""


@dataclass(frozen=True)
class Healing:
    """The end of a fault."""

    after: float
    """Seconds from its beginning."""
    heal: Callable[[], None]


Fault = Callable[[Stage, random.Random], Healing | None]
UNTIMELY = 0.1  # share of the strikes at trainers
SPOOL_WAIT = 1.0  # seconds for a trainer to have something in its spool


# Processes end. The stage starts them again.


def engine_killed(stage: Stage, chance: random.Random) -> None:
    """As by the OOM killer."""
    os.kill(_engine(stage, chance), signal.SIGKILL)


def trainer_killed(stage: Stage, chance: random.Random) -> None:
    """The supervisor; its engine ends with it."""
    _kill(_victim(stage, chance), chance)


def trainer_killed_with_a_spool(stage: Stage, chance: random.Random) -> None:
    """Between the spooling of a LoRA or a snapshot and its acknowledgement, which lasts for a moment only."""
    deadline = time.monotonic() + SPOOL_WAIT
    while time.monotonic() < deadline:
        for trainer in stage.trainers:
            if trainer.is_alive() and stage.has_spooled(trainer):
                return _kill(trainer, chance)
        time.sleep(0.005)  # another process's folder
    raise NotNow


def trainer_drained(stage: Stage, chance: random.Random) -> None:
    """A spot notice: it gives back its tune within its grace time."""
    _victim(stage, chance).send(signal.SIGTERM)


def gateway_killed(stage: Stage, chance: random.Random) -> None:
    """As by a power cut."""
    _kill(_one([gateway for gateway in stage.gateways if gateway.is_alive()], chance), chance)


def gateway_ended(stage: Stage, chance: random.Random) -> None:
    """As by a rollout: trainers are told to go to another one."""
    _one([gateway for gateway in stage.gateways if gateway.is_alive()], chance).send(signal.SIGTERM)


def everything_killed(stage: Stage, chance: random.Random) -> Healing | None:
    """As by a power cut: all gateways and trainers at once, and PostgreSQL without a word."""
    if stage.postgres is not None and not stage.postgres.is_running():
        raise NotNow
    for part in stage.parts():
        if part.is_alive():
            part.daemon.kill()
    return None if stage.postgres is None else _stop_database(stage, chance, signal.SIGQUIT)


# Processes hang, and go on as if nothing had been.


def engine_hung(stage: Stage, chance: random.Random) -> Healing:
    """For less than the step deadline, or for more."""
    engine = _engine(stage, chance)
    os.kill(engine, signal.SIGSTOP)
    return Healing(chance.choice([1.0, 3.0, 12.0]), lambda: resume(engine))


def trainer_hung(stage: Stage, chance: random.Random) -> Healing:
    """For less than a lease, or for more: then another has its tune when it wakes, and it does not know."""
    return _hang(_victim(stage, chance), chance.choice([1.0, 2.5, 6.0]))


def gateway_hung(stage: Stage, chance: random.Random) -> Healing:
    """With all its connections, and perhaps with a lock in the database."""
    return _hang(
        _one([gateway for gateway in stage.gateways if gateway.is_alive()], chance), chance.choice([0.5, 2.0, 5.0])
    )


# The network


def link_delayed(stage: Stage, chance: random.Random) -> Healing:
    """One trainer is far away."""
    proxy = chance.choice(list(stage.links.values()))
    proxy.delay(chance.uniform(0.05, 0.8))
    return Healing(chance.uniform(2.0, 6.0), proxy.heal)


def link_half_open(stage: Stage, chance: random.Random) -> Healing:
    """What is sent one way vanishes: only missing answers tell."""
    proxy = chance.choice(list(stage.links.values()))
    proxy.drop(chance.choice(list(Way)))
    return Healing(chance.uniform(2.0, 8.0), proxy.heal)


def link_reset(stage: Stage, chance: random.Random) -> None:
    """Every connection of one trainer breaks; it may come again at once, by any way."""
    for proxy in stage.links_of(chance.choice(stage.trainers)):
        proxy.reset()


def trainer_cut_off(stage: Stage, chance: random.Random) -> Healing:
    """No way leads from one trainer to any gateway: it computes on, and publishes nothing."""
    proxies = stage.links_of(chance.choice(stage.trainers))
    for proxy in proxies:
        proxy.refuse()

    def heal() -> None:
        for proxy in proxies:
            proxy.heal()

    return Healing(chance.uniform(1.0, 6.0), heal)


def objects_refused(stage: Stage, chance: random.Random) -> Healing:
    """The object store answers nobody."""
    stage.object_proxy.refuse()
    return Healing(chance.uniform(1.0, 5.0), stage.object_proxy.heal)


# PostgreSQL


def sessions_terminated(stage: Stage, chance: random.Random) -> None:
    """pg_terminate_backend, of all there are: transactions under way are lost, the wake-ups' connection too."""
    if stage.postgres is None or not stage.postgres.is_running():
        raise NotNow
    stage.terminate_sessions()


def database_restarted(stage: Stage, chance: random.Random) -> Healing:
    """In order, with a time in between when it is away."""
    return _stop_database(stage, chance, signal.SIGINT)


def database_crashed(stage: Stage, chance: random.Random) -> Healing:
    """Without a word (`-m immediate`), and with a recovery of its log after it."""
    return _stop_database(stage, chance, signal.SIGQUIT)


#: How many of each lie in the deck.
DECK: Mapping[Fault, int] = {
    engine_killed: 6,
    trainer_killed: 1,
    trainer_killed_with_a_spool: 1,
    trainer_drained: 1,
    gateway_killed: 2,
    gateway_ended: 1,
    everything_killed: 1,
    engine_hung: 1,
    trainer_hung: 2,
    gateway_hung: 1,
    link_delayed: 1,
    link_half_open: 2,
    link_reset: 1,
    trainer_cut_off: 1,
    objects_refused: 1,
    sessions_terminated: 1,
    database_restarted: 1,
    database_crashed: 1,
}


#: Those that end an attempt which has something to lose.
DEADLY = (engine_killed, trainer_killed, trainer_killed_with_a_spool, trainer_drained)


def dealt(stage: Stage, chance: random.Random) -> Iterator[Fault]:
    """Faults without end, from a deck that is shuffled anew when it is through: so a short run too has some of each."""
    of_postgres = (sessions_terminated, database_restarted, database_crashed)
    deck = [
        fault
        for fault, count in DECK.items()
        for _ in range(count)
        if stage.postgres is not None or fault not in of_postgres
    ]
    while True:
        yield from chance.sample(deck, len(deck))


def kind(fault: Fault) -> str:
    """Its name in the report."""
    return str(fault.__name__)


def _victim(stage: Stage, chance: random.Random) -> Part:
    """A trainer at work whose tune has a snapshot; now and then one before its first."""
    return _one(stage.at_work() if chance.random() < UNTIMELY else stage.at_stake(), chance)


def _one(parts: list[Part], chance: random.Random) -> Part:
    if not parts:
        raise NotNow
    return chance.choice(parts)


def _engine(stage: Stage, chance: random.Random) -> int:
    engine = stage.engine(_victim(stage, chance))
    if engine is None:
        raise NotNow
    return engine


def _kill(part: Part, chance: random.Random) -> None:
    part.daemon.kill()
    part.down_until = time.monotonic() + chance.choice([0.0, 0.0, 0.0, 3.0])


def _hang(part: Part, seconds: float) -> Healing:
    pid = part.pid
    os.kill(pid, signal.SIGSTOP)
    return Healing(seconds, lambda: resume(pid))


def _stop_database(stage: Stage, chance: random.Random, how: signal.Signals) -> Healing:
    postgres = stage.postgres
    if postgres is None or not postgres.is_running():
        raise NotNow
    postgres.stop(how)
    return Healing(chance.choice([0.0, 1.0, 4.0]), postgres.start)

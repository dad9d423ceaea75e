"""`tunesmith trainer`: which trainers there are, what they hold, and which of them are to be empty, in the database of
TUNESMITH_DATABASE_URL. Called by the command line. Their join tokens: see keys.py.
"""

from __future__ import annotations

import sys

import cyclopts

from gateway.cli.columns import NOTHING, lines
from gateway.cli.database import in_database
from store import trainers
from store.database import Database
from store.trainers import Standing

trainer = cyclopts.App(name="trainer", help="Trainers and their drain, in the database of TUNESMITH_DATABASE_URL.")

COLUMNS = ("TRAINER", "GATEWAY", "SLOTS", "HOLDS", "DEVICE", "SEEN", "DRAINED")
UNSAID = "the operator wants it empty"  # the reason of a drain without one


@trainer.command(name="list")
def list_trainers() -> int:
    """Print all trainers that have ever connected: the gateway that each is connected to, its slots, the tunes that it
    holds, its device, how long ago it was heard, and why it is drained.
    """

    async def show(database: Database) -> None:
        print(lines([COLUMNS, *map(_cells, await trainers.list_trainers(database))]))

    return in_database(show)


@trainer.command
def drain(trainer_id: str, *, reason: str | None = None) -> int:
    """Give a trainer no more tunes. What it has it finishes, it stays connected, and remains drained over its restarts,
    until `trainer resume`. Gateways notice within 2 seconds.

    Parameters
    ----------
    trainer_id
        As `trainer list` prints it.
    reason
        Why, for people: 1 to 200 printable characters. Not given, the one before stays, or it says that you want it so.
    """

    async def change(database: Database) -> None:
        why = UNSAID if reason is None else reason
        await trainers.drain(database, trainer_id, why, keeps=reason is None)
        await _say_what_it_holds(database, trainer_id)

    return in_database(change, wakes=True)


@trainer.command
def resume(trainer_id: str) -> int:
    """Let a drained trainer have tunes again. It takes the next one from its next heartbeat on.

    Parameters
    ----------
    trainer_id
        As `trainer list` prints it.
    """

    async def change(database: Database) -> None:
        await trainers.resume(database, trainer_id)
        await _say_what_it_holds(database, trainer_id)

    return in_database(change, wakes=True)


async def _say_what_it_holds(database: Database, trainer_id: str) -> None:
    mine = [each for each in await trainers.list_trainers(database) if each.trainer.trainer_id == trainer_id]
    print(lines([COLUMNS, *map(_cells, mine)]), file=sys.stderr)


def _cells(standing: Standing) -> tuple[str, ...]:
    row = standing.trainer
    return (
        row.trainer_id,
        row.gateway_id if standing.connected else NOTHING,
        str(row.slots),
        ",".join(standing.holds) or NOTHING,
        row.device_name or NOTHING,
        f"{max(0, round(standing.silent.total_seconds()))} s ago",
        row.drain_reason or NOTHING,
    )

"""Trainers as last heard, and which of them the operator wants empty. Called by gateway/dispatch and session at Hello,
Heartbeat and the stream's end; by gateway/places for the reason why a tune is still pending; by the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Float, bindparam, func, select, text, update
from sqlalchemy.sql.dml import ReturningUpdate

from store.database import Database
from store.dialect import among, later, now
from store.errors import NotFound, StateForbids
from store.tables import Trainer, record, trainers, tunes

ALIVE = 60.0  # seconds; a trainer that was not heard of for longer does not count as connected
LONGEST_REASON = 200  # characters, so that a list of trainers has one line for each


@dataclass(frozen=True)
class Hello:
    """What a trainer says of itself."""

    trainer_id: str
    """From its token."""
    boot_id: str
    """Of its process."""
    session_id: str
    """Of its stream; greater than those of the same boot before it."""
    gateway_id: str
    """Where the stream ends."""
    engines: Sequence[str]
    """That it can run."""
    slots: int
    """Tunes at the same time."""
    device_name: str = ""
    """The GPU's name, or "cpu"."""
    device_memory_bytes: int = 0
    """That a tune may use."""
    version: str = ""
    """Of its distribution."""


async def connect(db: Database, hello: Hello) -> Trainer | None:
    """The newest Hello takes the trainer's row. Returns the row as it was while its stream lasted, that is, who is
    evicted (another session of the same boot: it ends; of another boot: DUPLICATE_TRAINER); None where there was none.

    Wakes topic "trainer" with the trainer's id, so that the evicted stream's gateway looks.

    Raises:
        StateForbids: A newer stream of the same process stands there: this Hello has been long under way, and what it
            restates is no longer all.
    """
    values = {**asdict(hello), "engines": list(hello.engines), "free_slots": 0}
    async with db.beat() as transaction:
        await transaction.execute(_MAKE, {"trainer_id": hello.trainer_id})
        mine = trainers.c.trainer_id == hello.trainer_id
        before = record(Trainer, (await transaction.execute(select(trainers).where(mine).with_for_update())).one())
        if before.boot_id == hello.boot_id and hello.session_id < before.session_id:
            raise StateForbids("A newer stream of this trainer process has taken over.")
        taken = update(trainers).where(mine)
        await transaction.execute(taken.values(**values, connected_at=now(), seen_at=now(), disconnected_at=None))
        transaction.wake("trainer", hello.trainer_id)
    evicted = before.disconnected_at is None and before.session_id != hello.session_id
    return before if evicted else None


#: So that there is always a row to lock: two Hellos at once take it one after the other.
_MAKE = text(
    "INSERT INTO trainers (trainer_id, boot_id, session_id, gateway_id, version, slots, free_slots, device_name,"
    " device_memory_bytes, connected_at, seen_at, disconnected_at)"
    " VALUES (:trainer_id, '', '', '', '', 0, 0, '', 0, tunesmith_now(), tunesmith_now(), tunesmith_now())"
    " ON CONFLICT (trainer_id) DO NOTHING"
)


async def seen(db: Database, trainer_id: str, session_id: str, free_slots: int) -> bool:
    """A beat. False: a newer stream has taken over; this one is to end."""
    beat = {"trainer": trainer_id, "session": session_id, "free": free_slots}
    async with db.beat() as transaction:
        return (await transaction.execute(_SEEN, beat)).rowcount == 1


_SEEN = (
    update(trainers)
    .where(trainers.c.trainer_id == bindparam("trainer"), trainers.c.session_id == bindparam("session"))
    .values(seen_at=now(), free_slots=bindparam("free"), disconnected_at=None)
)


async def current(db: Database, trainer_id: str) -> Trainer | None:
    """The row as it stands."""
    async with db.read() as connection:
        row = (await connection.execute(select(trainers).where(trainers.c.trainer_id == trainer_id))).first()
    return None if row is None else record(Trainer, row)


async def find(db: Database, trainer_ids: Sequence[str]) -> list[Trainer]:
    """The rows of these as they stand: what a lost wake-up would have told."""
    async with db.read() as connection:
        rows = (await connection.execute(_FIND, {"trainers": list(trainer_ids)})).all()
    return [record(Trainer, row) for row in rows]


_FIND = select(trainers).where(among(trainers.c.trainer_id, "trainers"))


async def disconnect(db: Database, trainer_id: str, session_id: str) -> None:
    """The stream has ended; nothing where a newer one has taken over. Leases are left as they are."""
    mine = (trainers.c.trainer_id == trainer_id, trainers.c.session_id == session_id)
    async with db.beat() as transaction:
        await transaction.execute(update(trainers).where(*mine).values(disconnected_at=now(), free_slots=0))


async def list_connected(db: Database, within_seconds: float = ALIVE) -> list[Trainer]:
    """Trainers whose stream lasts and that were heard of so lately. Reads them all: there are as many as GPUs."""
    async with db.read() as connection:
        rows = (await connection.execute(_CONNECTED, {"ago": -within_seconds})).all()
    return [record(Trainer, row) for row in rows]


_CONNECTED = (
    select(trainers)
    .where(trainers.c.disconnected_at.is_(None), trainers.c.seen_at > later(bindparam("ago", type_=Float())))
    .order_by(trainers.c.trainer_id)
)


async def offers_engine(db: Database, engine: str, memory_class: int = 0, within_seconds: float = ALIVE) -> bool:
    """Whether a connected trainer can run tunes of the engine and memory class, and is not drained."""
    at_work = [each for each in await list_connected(db, within_seconds) if each.drain_reason is None]
    return any(engine in each.engines and memory_class * 2**30 <= each.device_memory_bytes for each in at_work)


# What the operator wants


async def drain(db: Database, trainer_id: str, reason: str, *, keeps: bool = False) -> Trainer:
    """From now on the trainer is to be given no tune; what it has it finishes. Holds until resume(), also over its
    restarts. Wakes topic "trainer", as resume() does. `keeps`: one that is drained already keeps the reason it has.

    ValueError: no such reason. NotFound: no such trainer.
    """
    if not (reason.strip() and len(reason) <= LONGEST_REASON and reason.isprintable()):
        wanted = f"1 to {LONGEST_REASON} printable characters, not blanks alone, were wanted"
        raise ValueError(f"the reason is {reason!r}; {wanted}")
    return await _want(db, trainer_id, reason, _WANT_STILL if keeps else _WANT)


async def resume(db: Database, trainer_id: str) -> Trainer:
    """The trainer is to work again. NotFound: no such trainer."""
    return await _want(db, trainer_id, None, _WANT)


async def _want(db: Database, trainer_id: str, drain_reason: str | None, how: ReturningUpdate[Any]) -> Trainer:
    async with db.write() as transaction:
        row = (await transaction.execute(how, {"trainer": trainer_id, "reason": drain_reason})).first()
        if row is None:
            raise NotFound(f"there is no trainer {trainer_id!r}: none of that id has ever connected")
        transaction.wake("trainer", trainer_id)
    return record(Trainer, row)


_MINE = update(trainers).where(trainers.c.trainer_id == bindparam("trainer"))
_WANT = _MINE.values(drain_reason=bindparam("reason")).returning(*trainers.c)
_WANT_STILL = _MINE.values(drain_reason=func.coalesce(trainers.c.drain_reason, bindparam("reason"))).returning(
    *trainers.c
)


@dataclass(frozen=True)
class Standing:
    """A trainer as its operator sees it."""

    trainer: Trainer
    """The row."""
    silent: timedelta
    """Since its last Hello or Heartbeat."""
    holds: Sequence[str]
    """Tunes whose lease is the trainer's."""

    @property
    def connected(self) -> bool:
        """Whether its stream lasts, as far as is known."""
        return self.trainer.disconnected_at is None and self.silent.total_seconds() < ALIVE


async def list_trainers(db: Database) -> list[Standing]:
    """All that have ever connected, by id."""
    async with db.read() as connection:
        rows = (await connection.execute(_ALL)).all()
        held = (await connection.execute(_HELD)).all()
    return [
        Standing(
            trainer=record(Trainer, row),
            silent=row.now - row.seen_at,
            holds=[tune.id for tune in held if tune.lease_trainer_id == row.trainer_id],
        )
        for row in rows
    ]


_ALL = select(trainers, now().label("now")).order_by(trainers.c.trainer_id)
_HELD = (  # by the partial index tunes_held: as many as there are slots
    select(tunes.c.id, tunes.c.lease_trainer_id).where(tunes.c.lease_expires_at.is_not(None)).order_by(tunes.c.id)
)

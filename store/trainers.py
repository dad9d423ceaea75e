"""Trainers as last heard. Called by gateway/session at Hello, Heartbeat and the stream's end; by gateway/tunes for
the reason why a tune is still pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Float, bindparam, select, text, update

from store.database import Database
from store.dialect import later, now
from store.errors import StateForbids
from store.tables import Trainer, record, trainers


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


async def disconnect(db: Database, trainer_id: str, session_id: str) -> None:
    """The stream has ended; nothing where a newer one has taken over. Leases are left as they are."""
    mine = (trainers.c.trainer_id == trainer_id, trainers.c.session_id == session_id)
    async with db.beat() as transaction:
        await transaction.execute(update(trainers).where(*mine).values(disconnected_at=now(), free_slots=0))


async def list_connected(db: Database, within_seconds: float = 60.0) -> list[Trainer]:
    """Trainers whose stream lasts and that were heard of so lately. Reads them all: there are as many as GPUs."""
    async with db.read() as connection:
        rows = (await connection.execute(_CONNECTED, {"ago": -within_seconds})).all()
    return [record(Trainer, row) for row in rows]


_CONNECTED = (
    select(trainers)
    .where(trainers.c.disconnected_at.is_(None), trainers.c.seen_at > later(bindparam("ago", type_=Float())))
    .order_by(trainers.c.trainer_id)
)


async def offers_engine(db: Database, engine: str, memory_class: int = 0, within_seconds: float = 60.0) -> bool:
    """Whether a connected trainer can run tunes of the engine and memory class."""
    connected = await list_connected(db, within_seconds)
    return any(engine in each.engines and memory_class * 2**30 <= each.device_memory_bytes for each in connected)

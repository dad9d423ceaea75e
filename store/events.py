"""A tune's log. Appended to by moves and reports inside their transactions; read by gateway/watch.

An event's seq is given under its tune's row lock (tunes.event_seq), so a reader that has seen seq n has seen all
before it: one that comes to light later would have been skipped by everyone who watches by "after seq n".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, bindparam, insert, select

from store.database import Database, Transaction
from store.dialect import now
from store.states import TuneState
from store.tables import Event, Tune, events, record

#: Names of TuneEventBody's arms.
KINDS = ("status_changed", "verdict", "recipe_resolved", "warning", "metrics", "sample", "snapshot")

#: (kind, body): an entry still to be written.
Entry = tuple[str, dict[str, Any]]


async def list_events(db: Database, tune_id: str, after_seq: int = 0, limit: int = 100) -> list[Event]:
    """The tune's events with a higher seq, oldest first. The caller has looked up the tune, and so may see them."""
    async with db.read() as connection:
        rows = await connection.execute(_AFTER, {"tune": tune_id, "after": after_seq, "limit": limit})
        return [record(Event, row) for row in rows]


#: By the primary key. A caller may ask for what comes after any 64-bit number.
_AFTER = (
    select(events)
    .where(events.c.tune_id == bindparam("tune"), events.c.seq > bindparam("after", type_=BigInteger()))
    .order_by(events.c.seq)
    .limit(bindparam("limit"))
)


def status_changed(state: TuneState, reason: str, details: str = "", attempt: int = 0) -> Entry:
    """An entry for a move."""
    return "status_changed", {"status": state.public, "details": details, "reason": reason, "attempt": attempt}


async def newest_step(transaction: Transaction, tune_id: str, epoch: int) -> int:
    """The last step whose metrics stand in the epoch's log; 0: none does."""
    body = (await transaction.execute(_NEWEST_METRICS, {"tune": tune_id, "of_epoch": epoch})).scalar_one_or_none()
    return 0 if body is None else int(body["steps"][-1]["step"])


#: By the primary key, backwards: few entries lie behind the newest metrics.
_NEWEST_METRICS = (
    select(events.c.body)
    .where(events.c.tune_id == bindparam("tune"), events.c.epoch == bindparam("of_epoch"), events.c.kind == "metrics")
    .order_by(events.c.seq.desc())
    .limit(1)
)


async def append(transaction: Transaction, tune: Tune, entries: Sequence[Entry]) -> None:
    """Writes the entries and wakes the tune's watchers. `tune.event_seq` counts them already, under the row's lock."""
    first = tune.event_seq - len(entries) + 1
    rows = [
        {"tune_id": tune.id, "seq": seq, "epoch": tune.lease_epoch, "kind": kind, "body": body}
        for seq, (kind, body) in enumerate(entries, first)
    ]
    if rows:
        await transaction.execute(_INSERT, rows)
        transaction.wake("tune", tune.id)


_INSERT = insert(events).values(created_at=now())

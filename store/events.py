"""A tune's log. Appended to by moves and reports inside their transactions; read by gateway/watch.

An event's seq is given under its tune's row lock (tunes.event_seq), so a reader that has seen seq n has seen all
before it: one that comes to light later would have been skipped by everyone who watches by "after seq n".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select

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


#: By the primary key.
_AFTER = (
    select(events)
    .where(events.c.tune_id == bindparam("tune"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("limit"))
)


def status_changed(state: TuneState, reason: str, details: str = "", attempt: int = 0) -> Entry:
    """An entry for a move."""
    return "status_changed", {"status": state.public, "details": details, "reason": reason, "attempt": attempt}


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

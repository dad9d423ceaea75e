"""The life of a tune: its states, the one table of allowed moves, and the same table as SQL. Used by tables, tunes and
leases, and by the migrations' triggers; knows no database connection.

    QUEUED -> ASSIGNED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED
       ^---------+-----------+   given back, or a retryable failure

RUNNING and ASSIGNED go to ASSIGNED where another trainer claims a tune whose lease has ended: the lease's end itself
writes nothing. QUEUED goes to FAILED where its pictures turn out to be unusable when it is claimed: nobody has held
it then.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class TuneState(StrEnum):
    """Where a tune stands, as the row says it."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def public(self) -> str:
        """The contract's word for it."""
        return "pending" if self in (TuneState.QUEUED, TuneState.ASSIGNED) else str(self.value)


#: Held by a trainer, whether or not the lease has ended meanwhile.
LEASED = frozenset({TuneState.ASSIGNED, TuneState.RUNNING})
#: Never left again.
TERMINAL = frozenset({TuneState.SUCCEEDED, TuneState.FAILED, TuneState.CANCELLED})
#: Still to be done.
LIVE = frozenset(TuneState) - TERMINAL

#: From each state, where a tune may go. The database holds the same table, as a trigger made from it.
MOVES: dict[TuneState, frozenset[TuneState]] = {
    TuneState.QUEUED: frozenset({TuneState.ASSIGNED, TuneState.CANCELLED, TuneState.FAILED}),
    TuneState.ASSIGNED: frozenset({TuneState.QUEUED, TuneState.ASSIGNED, TuneState.RUNNING}) | TERMINAL,
    TuneState.RUNNING: frozenset({TuneState.QUEUED, TuneState.ASSIGNED}) | TERMINAL,
    TuneState.SUCCEEDED: frozenset(),
    TuneState.FAILED: frozenset(),
    TuneState.CANCELLED: frozenset(),
}


def may_move(old: TuneState, new: TuneState) -> bool:
    """Whether the table of moves has this one."""
    return new in MOVES[old]


def listed(states: Iterable[TuneState]) -> str:
    """The states as an SQL list: `'assigned', 'running'`."""
    return ", ".join(f"'{state}'" for state in sorted(states))


def forbidden_sql() -> str:
    """SQL over OLD and NEW that holds where the table of moves has no such move, or where an epoch falls."""
    moves = " OR ".join(f"(OLD.state = '{old}' AND NEW.state IN ({listed(new)}))" for old, new in MOVES.items() if new)
    return f"(NEW.state <> OLD.state AND NOT ({moves})) OR NEW.lease_epoch < OLD.lease_epoch"


def trigger_sql(dialect: str) -> list[str]:
    """Statements that make the database hold the table of moves too. Migrations carry their text."""
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER tunes_moves BEFORE UPDATE OF state, lease_epoch ON tunes WHEN {forbidden_sql()} "
            "BEGIN SELECT RAISE(ABORT, 'the table of moves forbids this'); END"
        ]
    return [
        "CREATE FUNCTION tunes_moves() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'the table of moves forbids this' USING ERRCODE = 'check_violation'; END $$",
        "CREATE TRIGGER tunes_moves BEFORE UPDATE OF state, lease_epoch ON tunes "
        f"FOR EACH ROW WHEN ({forbidden_sql()}) EXECUTE FUNCTION tunes_moves()",
    ]

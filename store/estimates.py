"""How long a tune would take, told by those that the tenant has had: asked where a tune is only checked. Called by the
tunes' servicer; knows no trainers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select

from store.database import Database
from store.states import TuneState
from store.tables import Tune, tunes

LOOK = 200  # newest tunes of the tenant that are looked at
MOST = 20  # of them that are gone by


@dataclass(frozen=True)
class Estimate:
    """How long it would take from its assignment to its end."""

    seconds: float
    """All told: downloads, judging, encoding, steps, saving."""
    steps_per_second: float
    """The speed that is reckoned with."""
    tunes: int
    """How many tunes it is told by."""


async def estimate(db: Database, tune: Tune) -> Estimate | None:
    """As the tenant's newest succeeded tunes of the same checkpoint fared, else of the same engine; None: it has none.

    Only its own: how long others' take is theirs to know.
    """
    async with db.read() as connection:
        rows = (await connection.execute(_NEWEST, {"tenant": tune.tenant_id})).all()
    told = [row for row in rows if row.state == TuneState.SUCCEEDED and row.steps_per_second and row.lease_claimed_at]
    same = [row for row in told if row.checkpoint_id == tune.checkpoint_id]
    return _by((same or [row for row in told if row.engine == tune.engine])[:MOST], tune.steps)


#: By tunes_listed, and never more than so many, however few of them tell anything.
_NEWEST = (
    select(
        tunes.c.state,
        tunes.c.checkpoint_id,
        tunes.c.engine,
        tunes.c.steps,
        tunes.c.steps_per_second,
        tunes.c.lease_claimed_at,
        tunes.c.ended_at,
        tunes.c.attempts,
    )
    .where(tunes.c.tenant_id == bindparam("tenant"), tunes.c.deleted_at.is_(None))
    .order_by(tunes.c.created_at.desc(), tunes.c.id.desc())
    .limit(LOOK)
)


def _by(rows: Sequence[Any], steps: int) -> Estimate | None:
    if not rows:
        return None
    speed = statistics.median(row.steps_per_second for row in rows)
    # What is not stepping: of those that one attempt has brought to their end, for others' last lease is a part of it.
    whole = [row for row in rows if row.attempts <= 1]
    besides = [
        max((row.ended_at - row.lease_claimed_at).total_seconds() - row.steps / row.steps_per_second, 0.0)
        for row in whole
    ]
    return Estimate(steps / speed + (statistics.median(besides) if besides else 0.0), speed, len(rows))

"""When a lease counts as ended: its time is up, and we have been alive to hear its trainer. Used by leases, claims and,
for the tokens of fetches, by fetches.

An outage of ours, or of the database, ends nobody's lease: every gateway shows each heartbeat that the service lives
(leases.reap). Where nobody has for SILENCE of a lease, one whole lease passes before any lease counts as ended.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Float, bindparam

from store.dialect import later, now
from store.tables import liveness, tunes

#: The share of a lease for which no gateway may be silent. A beat is a ninth of a lease, so at the end of such a
#: silence every lease that was renewed before it still has a third of its time.
SILENCE = 0.5


def has_ended() -> list[ColumnElement[bool]]:
    """Conditions on tunes and liveness, parameter `silence`: the lease has ended, and not merely because we were
    away.
    """
    return [tunes.c.lease_expires_at <= now(), liveness.c.grace_until <= now(), is_alive()]


def is_alive() -> ColumnElement[bool]:
    """A condition on liveness, parameter `silence`: some gateway has been heard of late."""
    return liveness.c.seen_at >= later(bindparam("silence", type_=Float()))

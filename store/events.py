"""A tune's log. Appended to by tunes, leases and reports inside their transactions; read by gateway/watch."""

from __future__ import annotations

from store.database import Database
from store.tables import Event

#: Names of TuneEventBody's arms.
KINDS = ("status_changed", "verdict", "recipe_resolved", "warning", "metrics", "sample", "snapshot")


async def list_events(db: Database, tune_id: str, after_seq: int = 0, limit: int = 100) -> list[Event]:
    """The tune's events with a higher seq, oldest first. The caller has looked up the tune, and so may see them."""
    raise NotImplementedError

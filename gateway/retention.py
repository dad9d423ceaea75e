"""Lets go of what is old, in rounds: what that is and how, the store says (store/retention). One of the server's tasks;
every gateway has one, and they share the work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from store import retention
from store.database import Database

DAY = 86400.0  # seconds
PAUSE = 0.02  # seconds between two batches, so that a backlog of years is no load that callers notice

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Terms:
    """After how many days what goes; None: it stays."""

    metrics_days: float | None = None
    """Most step metrics, after their tune's end."""
    deleted_asset_days: float | None = None
    """An asset's bytes, after its deletion."""
    ended_key_days: float | None = None
    """An API key's row, after it expired or was revoked."""
    webhook_days: float | None = None
    """A webhook with its tries, after it was delivered or given up, or its endpoint disabled; one that was sent again,
    after that.
    """


class Retention:
    """Goes round."""

    def __init__(self, database: Database, terms: Terms, *, period_seconds: float) -> None:
        self._database = database
        self._period_seconds = period_seconds
        self._rules: tuple[tuple[str, float | None, Callable[[Database, float], Awaitable[int]]], ...] = (
            ("tunes had their step metrics thinned", terms.metrics_days, retention.thin_metrics),
            ("deleted assets gave up their bytes", terms.deleted_asset_days, retention.release_assets),
            ("API keys that ended long ago were erased", terms.ended_key_days, retention.forget_keys),
            ("old webhooks were erased", terms.webhook_days, retention.forget_deliveries),
        )

    async def run(self) -> None:
        """Goes round again and again until cancelled."""
        while True:
            try:
                await self.apply()
            except Exception as exc:  # a database that is away is no reason to end the gateway; there is a next round
                log.warning(f"What is old could not be let go of: {exc}", action="retention_failed")
            await asyncio.sleep(self._period_seconds)

    async def apply(self) -> None:
        """One round: batch after batch until there is nothing more."""
        for what, days, let_go in self._rules:
            if days is None:
                continue
            count = 0
            while some := await let_go(self._database, days * DAY):
                count += some
                await asyncio.sleep(PAUSE)
            if count:
                log.info(f"{count} {what}", action="retention", rule=let_go.__name__, count=count)

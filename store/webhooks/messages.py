"""Webhooks as the operator sees them: what was sent and how that went, how much waits, and sending one again. Called by
the command line and the metrics; their delivery is in deliveries.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from store.database import Database
from store.dialect import Time, among, now
from store.errors import NotFound
from store.tables import record
from store.webhooks.tables import (
    WebhookAttempt,
    WebhookDelivery,
    webhook_attempts,
    webhook_deliveries,
    webhook_endpoints,
)


@dataclass(frozen=True)
class OutboxStats:
    """The outbox in numbers, for metrics; without what waits for disabled endpoints."""

    pending: int = 0
    """Messages that wait for their first or next try."""
    oldest_seconds: float = 0.0
    """For how long the oldest of them has waited."""


@dataclass(frozen=True)
class LogEntry:
    """A message as its operator sees it."""

    delivery: WebhookDelivery
    """The row."""
    attempts: Sequence[WebhookAttempt]
    """Its tries, the oldest first."""


@dataclass(frozen=True)
class Resent:
    """To which endpoints a message goes once more."""

    now: Sequence[str]
    """Their ids."""
    once_enabled: Sequence[str]
    """Of those that are disabled: it waits for them."""


async def resend(db: Database, message_id: str, endpoint_id: str | None = None) -> Resent:
    """Sends the message once more, to the endpoint or to all that it was for, with as many tries as a new one; also
    where it was delivered. NotFound: there is no such message, or none for the endpoint.
    """
    which = [webhook_deliveries.c.message_id == message_id]
    if endpoint_id is not None:
        which.append(webhook_deliveries.c.endpoint_id == endpoint_id)
    epoch = webhook_deliveries.c.epoch + 1  # a try that is under way counts for nothing any more
    anew = {"state": "pending", "due_at": now(), "ended_at": None, "tries": 0, "epoch": epoch}
    again = update(webhook_deliveries).where(*which).values(anew).returning(webhook_deliveries.c.endpoint_id)
    async with db.write() as transaction:
        told = sorted((await transaction.execute(again)).scalars())
        if not told:
            to = "" if endpoint_id is None else f" for {endpoint_id!r}"
            raise NotFound(f"there is no message {message_id!r}{to}")
        transaction.wake("webhook", message_id)
        disabled = set((await transaction.execute(_DISABLED, {"endpoints": told})).scalars())
    return Resent([each for each in told if each not in disabled], [each for each in told if each in disabled])


_DISABLED = select(webhook_endpoints.c.id).where(
    among(webhook_endpoints.c.id, "endpoints"), webhook_endpoints.c.disabled_at.is_not(None)
)


async def log(
    db: Database, *, message_id: str | None = None, endpoint_id: str | None = None, limit: int = 50
) -> list[LogEntry]:
    """The newest messages, all or those of one endpoint, or one message at all its endpoints; each with its tries.

    NotFound: there is no such message, or no such endpoint.
    """
    newest = _newest(message_id, endpoint_id, limit)
    tries = _ATTEMPTS if endpoint_id is None else _ATTEMPTS.where(webhook_attempts.c.endpoint_id == endpoint_id)
    async with db.read() as connection:
        found = [record(WebhookDelivery, row) for row in await connection.execute(newest)]
        if not found:
            await _check_there(connection, message_id, endpoint_id)
        tried = (await connection.execute(tries, {"messages": [each.message_id for each in found]})).all()
    attempts: dict[tuple[str, str], list[WebhookAttempt]] = {}
    for row in tried:
        attempts.setdefault((row.message_id, row.endpoint_id), []).append(record(WebhookAttempt, row))
    return [LogEntry(each, attempts.get((each.message_id, each.endpoint_id), [])) for each in found]


async def _check_there(connection: AsyncConnection, message_id: str | None, endpoint_id: str | None) -> None:
    """Nothing was found: because there is nothing, or because a name is mistyped?"""
    if endpoint_id is not None:
        known = await connection.execute(select(webhook_endpoints.c.id).where(webhook_endpoints.c.id == endpoint_id))
        if known.first() is None:
            raise NotFound(f"there is no webhook endpoint {endpoint_id!r}")
    if message_id is not None:
        to = "" if endpoint_id is None else f" for {endpoint_id!r}"
        raise NotFound(f"there is no message {message_id!r}{to}")


def _newest(message_id: str | None, endpoint_id: str | None, limit: int) -> Select[Any]:
    """All by webhook_deliveries_newest, one endpoint's by webhook_deliveries_of_endpoint."""
    newest = select(webhook_deliveries).order_by(
        webhook_deliveries.c.created_at.desc(), webhook_deliveries.c.message_id.desc(), webhook_deliveries.c.endpoint_id
    )
    if message_id is not None:
        newest = newest.where(webhook_deliveries.c.message_id == message_id)
    if endpoint_id is not None:
        newest = newest.where(webhook_deliveries.c.endpoint_id == endpoint_id)
    return newest.limit(limit)


#: By the primary key.
_ATTEMPTS = (
    select(webhook_attempts)
    .where(among(webhook_attempts.c.message_id, "messages"))
    .order_by(webhook_attempts.c.message_id, webhook_attempts.c.endpoint_id, webhook_attempts.c.epoch)
)


async def stats(db: Database) -> OutboxStats:
    """The outbox in numbers; reads what waits."""
    async with db.read() as connection:
        row = (await connection.execute(_STATS)).one()
    oldest = 0.0 if row.oldest is None else (row.now - row.oldest).total_seconds()
    return OutboxStats(row.pending, oldest)


_STATS = (
    select(
        func.count().label("pending"),
        func.min(webhook_deliveries.c.created_at, type_=Time()).label("oldest"),
        now().label("now"),
    )
    .join(webhook_endpoints, webhook_endpoints.c.id == webhook_deliveries.c.endpoint_id)
    .where(webhook_deliveries.c.due_at.is_not(None), webhook_endpoints.c.disabled_at.is_(None))
)

"""How the outbox is delivered: which messages are due, who tries them, what becomes of a try. Called by
gateway/webhooks; knows no HTTP but for the meaning of a status.

Several gateways work on it at once. Who claims a message moves the time at which it is due by a lease, and so owns it
for as long: a gateway that dies over it leaves a message that falls due again, under the same id. Each claim bears the
next epoch, and only the newest one's try is recorded.

    pending --claim--> pending, due when the lease ends --2xx--> delivered
                          |        ^                    --no more tries--> given up
                          +--------+  anything else: due again as SCHEDULE says

Locks are taken in this order: the endpoint's row, then its deliveries'.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Float, Integer, and_, bindparam, func, insert, or_, select, update

from store.database import Database, Transaction
from store.dialect import Time, later, now
from store.webhooks.tables import (
    webhook_attempts,
    webhook_deliveries,
    webhook_endpoints,
    webhook_secrets,
)

#: Seconds from the first try to the second, and so on; after the last of these a message is given up: about 38 hours.
SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0, 36000.0)
JITTER = 0.2  # of a pause, added at random: messages that failed together are not tried together
LONGEST_PAUSE = 24 * 3600.0  # seconds, that a receiver's Retry-After can ask for
FAILING = 3 * 86400.0  # seconds in which no try went well, after which giving up a message disables its endpoint
GONE = 410  # HTTP status: the receiver wants no more, and says so for good


@dataclass(frozen=True)
class DueEndpoint:
    """An endpoint with something to send now."""

    endpoint_id: str
    """Which."""
    tenant_id: str
    """Whose."""


@dataclass(frozen=True)
class Due:
    """A message that this process is to send now."""

    message_id: str
    """The same at each try."""
    endpoint_id: str
    """Where to."""
    epoch: int
    """This claim's."""
    url: str
    """The endpoint's."""
    secrets: Sequence[str]
    """That sign it, the newest first."""
    event_type: str
    """What it tells of, for logs."""
    body: str
    """What is sent."""


@dataclass(frozen=True)
class Answer:
    """How a try went."""

    seconds: float
    """How long it took."""
    status: int | None = None
    """The answer's HTTP status; None: there was none."""
    error: str | None = None
    """Why there was none: a word such as TIMEOUT."""
    retry_after_seconds: float | None = None
    """What the receiver asked for."""

    @property
    def good(self) -> bool:
        """Whether the receiver has taken the message."""
        return self.status is not None and 200 <= self.status < 300


class Fate(StrEnum):
    """What became of a message by a try."""

    DELIVERED = "delivered"
    RETRIED = "retried"
    GIVEN_UP = "given_up"
    #: The try came after its lease, or the endpoint is gone: it is not recorded.
    STALE = "stale"


@dataclass(frozen=True)
class Verdict:
    """What was recorded of a try."""

    fate: Fate
    """What became of the message."""
    disabled: str | None = None
    """Why the endpoint was disabled with it. None: it was not, or had been before."""


async def due_endpoints(db: Database) -> list[DueEndpoint]:
    """Endpoints with something to send now; whose turn has come first goes first."""
    async with db.read() as connection:
        return [DueEndpoint(row.id, row.tenant_id) for row in await connection.execute(_DUE)]


#: As many look-ups in webhook_deliveries_due as there are endpoints.
_OLDEST = (
    select(func.min(webhook_deliveries.c.due_at, type_=Time()))
    .where(webhook_deliveries.c.endpoint_id == webhook_endpoints.c.id, webhook_deliveries.c.due_at.is_not(None))
    .scalar_subquery()
)
_DUE = (
    select(webhook_endpoints.c.id, webhook_endpoints.c.tenant_id)
    .where(webhook_endpoints.c.disabled_at.is_(None), now() >= _OLDEST)
    .order_by(_OLDEST, webhook_endpoints.c.id)
)


async def claim(db: Database, endpoint_id: str, limit: int, lease_seconds: float) -> list[Due]:
    """Some messages that are due at the endpoint, for this process alone while the lease lasts."""
    asked = {"endpoint": endpoint_id, "most": limit, "lease": lease_seconds}
    async with db.write() as transaction:
        rows = (await transaction.execute(_CLAIM, asked)).all()
        if not rows:
            return []
        signers = await transaction.execute(_SECRETS, {"endpoint": endpoint_id})
        secrets = [row.secret for row in signers]
        url = (await transaction.execute(_URL, {"endpoint": endpoint_id})).scalar_one_or_none()
    if url is None:  # removed in this moment
        return []
    return [
        Due(row.message_id, row.endpoint_id, row.epoch, url, secrets, row.event_type, row.body)
        for row in sorted(rows, key=lambda row: (row.created_at, row.message_id))
    ]


_ENABLED = (
    select(webhook_endpoints.c.id)
    .where(webhook_endpoints.c.id == bindparam("endpoint"), webhook_endpoints.c.disabled_at.is_(None))
    .scalar_subquery()
)
#: By webhook_deliveries_due. What another gateway is claiming is passed over.
_CLAIMABLE = (
    select(webhook_deliveries.c.message_id)
    .where(webhook_deliveries.c.endpoint_id == _ENABLED, webhook_deliveries.c.due_at <= now())
    .order_by(webhook_deliveries.c.due_at)
    .limit(bindparam("most", type_=Integer()))
    .with_for_update(skip_locked=True)
)
_CLAIM = (
    update(webhook_deliveries)
    .where(webhook_deliveries.c.endpoint_id == bindparam("endpoint"), webhook_deliveries.c.message_id.in_(_CLAIMABLE))
    .values(
        due_at=later(bindparam("lease", type_=Float())),
        epoch=webhook_deliveries.c.epoch + 1,
        tries=webhook_deliveries.c.tries + 1,
    )
    .returning(*webhook_deliveries.c)
)
_SECRETS = (
    select(webhook_secrets.c.secret)
    .where(
        webhook_secrets.c.endpoint_id == bindparam("endpoint"),
        or_(webhook_secrets.c.expires_at.is_(None), webhook_secrets.c.expires_at > now()),
    )
    .order_by(webhook_secrets.c.expires_at.is_not(None), webhook_secrets.c.created_at.desc())
)
_URL = select(webhook_endpoints.c.url).where(webhook_endpoints.c.id == bindparam("endpoint"))


async def conclude(db: Database, due: Due, answer: Answer) -> Verdict:
    """Records the try, and what becomes of the message and of its endpoint."""
    async with db.write() as transaction:
        locked = (await transaction.execute(_LOCK_ENDPOINT, {"endpoint": due.endpoint_id, "ago": -FAILING})).first()
        if locked is None:
            return Verdict(Fate.STALE)
        ours = {"message": due.message_id, "endpoint": due.endpoint_id, "of_epoch": due.epoch}
        tries = (await transaction.execute(_LOCK, ours)).scalar_one_or_none()
        if tries is None:
            return Verdict(Fate.STALE)
        pause = None if answer.good else pause_after(tries, answer.retry_after_seconds)
        fate = _fate(answer, pause)
        await _record(transaction, due, answer, fate, pause)
        disabled = None
        if answer.good:
            if locked.failing_since is not None:
                await transaction.execute(_WELL, {"endpoint": due.endpoint_id})
        else:
            if locked.disabled_at is None:
                disabled = _why_disabled(answer, fate, has_failed_long=bool(locked.has_failed_long))
            await transaction.execute(_ILL, {"endpoint": due.endpoint_id})
            if disabled is not None:
                await transaction.execute(_DISABLE, {"endpoint": due.endpoint_id, "why": disabled})
    return Verdict(fate, disabled)


#: NO KEY UPDATE: moves that write messages for the endpoint need not wait.
_LOCK_ENDPOINT = (
    select(
        webhook_endpoints.c.failing_since,
        webhook_endpoints.c.disabled_at,
        func.coalesce(webhook_endpoints.c.failing_since <= later(bindparam("ago", type_=Float())), False).label(
            "has_failed_long"
        ),
    )
    .where(webhook_endpoints.c.id == bindparam("endpoint"))
    .with_for_update(key_share=True)
)
_OURS = and_(
    webhook_deliveries.c.message_id == bindparam("message"),
    webhook_deliveries.c.endpoint_id == bindparam("endpoint"),
)
_LOCK = (
    select(webhook_deliveries.c.tries)
    .where(_OURS, webhook_deliveries.c.epoch == bindparam("of_epoch"), webhook_deliveries.c.state == "pending")
    .with_for_update()
)
_WELL = update(webhook_endpoints).where(webhook_endpoints.c.id == bindparam("endpoint")).values(failing_since=None)
_ILL = (
    update(webhook_endpoints)
    .where(webhook_endpoints.c.id == bindparam("endpoint"))
    .values(failing_since=func.coalesce(webhook_endpoints.c.failing_since, now()))
)
_DISABLE = (
    update(webhook_endpoints)
    .where(webhook_endpoints.c.id == bindparam("endpoint"))
    .values(disabled_at=now(), disabled_reason=bindparam("why"))
)


def pause_after(tries: int, retry_after_seconds: float | None = None) -> float | None:
    """Seconds from a try that failed, the first or the second or so on, to the next one; None: it was the last. A
    receiver can ask for more time, and gets a day at most.
    """
    if tries > len(SCHEDULE):
        return None
    planned = SCHEDULE[tries - 1] * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311  # no secret
    return max(planned, min(retry_after_seconds or 0.0, LONGEST_PAUSE))


def _fate(answer: Answer, pause: float | None) -> Fate:
    if answer.good:
        return Fate.DELIVERED
    return Fate.GIVEN_UP if pause is None else Fate.RETRIED


def _why_disabled(answer: Answer, fate: Fate, *, has_failed_long: bool) -> str | None:
    """One message that is given up is not enough: after a quiet month its tries may be the first that fail."""
    if answer.status == GONE:
        return "the receiver answered 410 Gone"
    if fate is Fate.GIVEN_UP and has_failed_long:
        last = f"HTTP {answer.status}" if answer.status is not None else answer.error
        return f"no try went well for {FAILING / 86400:g} days; the last one ended with {last}"
    return None


async def _record(transaction: Transaction, due: Due, answer: Answer, fate: Fate, pause: float | None) -> None:
    ours = {"message": due.message_id, "endpoint": due.endpoint_id}
    if fate is Fate.RETRIED:
        await transaction.execute(_RETRY, {**ours, "pause": pause})
    else:
        await transaction.execute(_END, {**ours, "fate": fate.value})
    tried = {"message_id": due.message_id, "endpoint_id": due.endpoint_id, "epoch": due.epoch}
    told = {"seconds": answer.seconds, "status": answer.status, "error": answer.error}
    await transaction.execute(_INSERT_ATTEMPT, {**tried, **told})


_RETRY = update(webhook_deliveries).where(_OURS).values(due_at=later(bindparam("pause", type_=Float())))
_END = update(webhook_deliveries).where(_OURS).values(state=bindparam("fate"), due_at=None, ended_at=now())
_INSERT_ATTEMPT = insert(webhook_attempts).values(ended_at=now())

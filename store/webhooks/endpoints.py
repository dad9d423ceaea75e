"""Webhook endpoints: which addresses of a tenant are told of its tunes, and the secrets that this is signed with.
Called by the command line; what is written for them is in outbox.py, and how it is delivered in deliveries.py.

Unlike a caller's key, a secret is kept as it is, for it signs: who reads the database can sign as this service.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import Float, Integer, bindparam, delete, func, insert, or_, select, update

from store.database import Database, Transaction
from store.dialect import Time, later, now
from store.errors import NotFound, StateForbids
from store.ids import new_id
from store.tables import record, tenants
from store.webhooks.tables import (
    EVENT_TYPES,
    WebhookEndpoint,
    webhook_deliveries,
    webhook_endpoints,
    webhook_secrets,
)

MOST = 16  # endpoints of a tenant: each move of its tunes writes so many rows
MOST_SECRETS = 4  # of an endpoint at a time: each is a signature in a header
LONGEST_URL = 2048  # characters
LONGEST_TEXT = 200  # characters, so that a list has one line for each
LONGEST_KEPT = 366 * 86400  # seconds that a secret signs beside the one that was made for it
ROWS = 500  # a transaction, of what is removed
SECRET_BYTES = 32  # Standard Webhooks wants 24 to 64
#: What is told where nothing is said: the ends.
ENDS = tuple(each for each in EVENT_TYPES if each != "tune.running")


@dataclass(frozen=True)
class EndpointStanding:
    """An endpoint as its operator sees it."""

    endpoint: WebhookEndpoint
    """The row."""
    tenant_name: str
    """Whose it is."""
    pending: int
    """Messages that wait for their first or next try."""
    waited: timedelta | None
    """For how long the oldest of them has. None: none waits."""


async def add(
    db: Database, tenant_name: str, url: str, event_types: Sequence[str] = ENDS, description: str = ""
) -> tuple[WebhookEndpoint, str]:
    """From now on the address is told of these moves of the tenant's tunes. Also returns the secret, "whsec_...".

    ValueError: it is no such address, event type or description, a line for each. NotFound: no such tenant.
    StateForbids: it has many.
    """
    faults = [fault_of_url(url), _fault_of_types(event_types), fault_of_text("description", description, least=0)]
    if told := [fault for fault in faults if fault is not None]:
        raise ValueError("\n".join(told))
    async with db.write() as transaction:
        tenant = await transaction.execute(
            select(tenants.c.id).where(tenants.c.name == tenant_name).with_for_update(key_share=True)
        )
        tenant_id = tenant.scalar_one_or_none()
        if tenant_id is None:
            raise NotFound(f"there is no tenant {tenant_name!r}")
        has = await transaction.execute(
            select(func.count()).select_from(webhook_endpoints).where(webhook_endpoints.c.tenant_id == tenant_id)
        )
        if has.scalar_one() >= MOST:
            raise StateForbids(f"tenant {tenant_name!r} has {MOST} webhook endpoints already, and may have no more")
        values = {
            "id": new_id("hook"),
            "tenant_id": tenant_id,
            "url": url,
            "description": description,
            "event_types": [each for each in EVENT_TYPES if each in event_types],
            "created_at": now(),
        }
        made = insert(webhook_endpoints).values(**values).returning(*webhook_endpoints.c)
        endpoint = record(WebhookEndpoint, (await transaction.execute(made)).one())
        secret = await _make_secret(transaction, endpoint.id)
    return endpoint, secret


async def list_endpoints(db: Database, tenant_name: str | None = None) -> list[EndpointStanding]:
    """All endpoints, or the tenant's: by tenant, then by age. NotFound: no such tenant."""
    query = _ALL if tenant_name is None else _ALL.where(tenants.c.name == tenant_name)
    async with db.read() as connection:
        rows = (await connection.execute(query)).all()
        if not rows and tenant_name is not None:
            known = await connection.execute(select(tenants.c.id).where(tenants.c.name == tenant_name))
            if known.first() is None:
                raise NotFound(f"there is no tenant {tenant_name!r}")
    return [_standing(row) for row in rows]


def _standing(row: Any) -> EndpointStanding:  # noqa: ANN401  # a row of _ALL
    columns = dict(row._mapping)
    tenant_name, pending, oldest, at = (columns.pop(name) for name in ("tenant_name", "pending", "oldest", "now"))
    waited = None if oldest is None else at - oldest
    return EndpointStanding(record(WebhookEndpoint, columns), tenant_name, pending, waited)


#: Counts by webhook_deliveries_due: as much as waits.
_WAITING = (
    select(
        webhook_deliveries.c.endpoint_id,
        func.count().label("pending"),
        func.min(webhook_deliveries.c.created_at, type_=Time()).label("oldest"),
    )
    .where(webhook_deliveries.c.due_at.is_not(None))
    .group_by(webhook_deliveries.c.endpoint_id)
    .subquery()
)
_ALL = (
    select(
        webhook_endpoints,
        tenants.c.name.label("tenant_name"),
        func.coalesce(_WAITING.c.pending, 0).label("pending"),
        _WAITING.c.oldest.label("oldest"),
        now().label("now"),
    )
    .join(tenants, tenants.c.id == webhook_endpoints.c.tenant_id)
    .outerjoin(_WAITING, _WAITING.c.endpoint_id == webhook_endpoints.c.id)
    .order_by(tenants.c.name, webhook_endpoints.c.created_at, webhook_endpoints.c.id)
)


async def remove(db: Database, endpoint_id: str) -> None:
    """Forgets the endpoint, with what waits for it and its log. NotFound: no such endpoint.

    Its messages go first, batch after batch: a log of millions would outlast a statement's time, and moves of the
    tenant's tunes wait for who deletes the endpoint. Who dies amid it leaves the endpoint disabled, to be removed anew.
    """
    await disable(db, endpoint_id, "it is being removed")
    ours = {"endpoint": endpoint_id, "most": ROWS}
    some = ROWS
    while some:  # fewer than ROWS need not be the last: retention erases some of a batch first
        async with db.write() as transaction:
            some = (await transaction.execute(_REMOVE_SOME, ours)).rowcount
    async with db.write() as transaction:
        await transaction.execute(_REMOVE, ours)


#: By webhook_deliveries_of_endpoint; each one's tries go with it.
_REMOVE_SOME = delete(webhook_deliveries).where(
    webhook_deliveries.c.endpoint_id == bindparam("endpoint"),
    webhook_deliveries.c.message_id.in_(
        select(webhook_deliveries.c.message_id)
        .where(webhook_deliveries.c.endpoint_id == bindparam("endpoint"))
        .limit(bindparam("most", type_=Integer()))
    ),
)
#: With its secrets, and messages of moves that had begun before it was disabled.
_REMOVE = delete(webhook_endpoints).where(webhook_endpoints.c.id == bindparam("endpoint"))


async def rotate(db: Database, endpoint_id: str, keep_seconds: float) -> str:
    """Makes a new secret and returns it. Those before it sign too for so long, so that the receiver can change over at
    any time until then.

    ValueError: it would be for too long. NotFound: no such endpoint. StateForbids: several rotations are under way at
    once.
    """
    if not 0 <= keep_seconds <= LONGEST_KEPT:
        most = LONGEST_KEPT // 3600
        raise ValueError(f"the old secret would sign for {keep_seconds / 3600:g} hours; 0 to {most} were wanted")
    async with db.write() as transaction:
        await _lock(transaction, endpoint_id)
        mine = {"endpoint": endpoint_id}
        if keep_seconds <= 0:
            await transaction.execute(_FORGET, mine)
        await transaction.execute(_FORGET_ENDED, mine)
        await transaction.execute(_AGE, {**mine, "keep": keep_seconds})
        valid = (await transaction.execute(_COUNT_VALID, mine)).scalar_one()
        if valid >= MOST_SECRETS:
            raise StateForbids(
                f"{endpoint_id} has {valid} valid secrets from the last rotations; wait until one of them has ended, or"
                " keep them for 0 hours"
            )
        return await _make_secret(transaction, endpoint_id)


_MINE = webhook_secrets.c.endpoint_id == bindparam("endpoint")
_KEPT_UNTIL = later(bindparam("keep", type_=Float()))
_FORGET = delete(webhook_secrets).where(_MINE)
_FORGET_ENDED = _FORGET.where(webhook_secrets.c.expires_at <= now())
_AGE = (
    update(webhook_secrets)
    .where(_MINE, or_(webhook_secrets.c.expires_at.is_(None), webhook_secrets.c.expires_at > _KEPT_UNTIL))
    .values(expires_at=_KEPT_UNTIL)
)
_COUNT_VALID = select(func.count()).select_from(webhook_secrets).where(_MINE)


async def enable(db: Database, endpoint_id: str) -> WebhookEndpoint:
    """The endpoint is told again: also what waited when it was disabled, but not what happened since. NotFound: no such
    endpoint.
    """
    async with db.write() as transaction:
        endpoint = await _change(transaction, endpoint_id, disabled_at=None, disabled_reason=None, failing_since=None)
        transaction.wake("webhook", endpoint.tenant_id)
    return endpoint


async def disable(db: Database, endpoint_id: str, reason: str, *, keeps: bool = False) -> WebhookEndpoint:
    """The endpoint is told nothing more. `keeps`: one that is disabled already keeps the reason it has, and since when.
    ValueError: no such reason. NotFound: no such endpoint.
    """
    if (fault := fault_of_text("reason", reason, least=1)) is not None:
        raise ValueError(fault)
    values: dict[str, Any] = {"disabled_at": now(), "disabled_reason": reason}
    if keeps:
        values = {name: func.coalesce(webhook_endpoints.c[name], value) for name, value in values.items()}
    async with db.write() as transaction:
        return await _change(transaction, endpoint_id, **values)


async def _change(transaction: Transaction, endpoint_id: str, **values: Any) -> WebhookEndpoint:  # noqa: ANN401  # columns
    changed = update(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id).values(**values)
    row = (await transaction.execute(changed.returning(*webhook_endpoints.c))).first()
    if row is None:
        raise _unknown(endpoint_id)
    return record(WebhookEndpoint, row)


async def _lock(transaction: Transaction, endpoint_id: str) -> None:
    locked = select(webhook_endpoints.c.id).where(webhook_endpoints.c.id == endpoint_id)
    if (await transaction.execute(locked.with_for_update(key_share=True))).first() is None:
        raise _unknown(endpoint_id)


async def _make_secret(transaction: Transaction, endpoint_id: str) -> str:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    values = {"endpoint_id": endpoint_id, "secret": secret, "created_at": now()}
    await transaction.execute(insert(webhook_secrets).values(**values))
    return secret


def _unknown(endpoint_id: str) -> NotFound:
    return NotFound(f"there is no webhook endpoint {endpoint_id!r}")


def fault_of_url(url: str) -> str | None:
    """What is wrong with an address; None where nothing is."""
    wanted = "http://HOST/... or https://HOST/... was wanted, without user, password or fragment"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or "@" in parts.netloc or "#" in url or not (url.isascii() and url.isprintable()) or " " in url:
        return f"the URL is {shown(url)}; {wanted}"
    if len(url) > LONGEST_URL:
        return f"the URL has {len(url)} characters; at most {LONGEST_URL} were wanted"
    return None


def shown(url: str) -> str:
    """How a message repeats it: not at all where it may hold a user and a password, wherever a parser sees them."""
    return "(not shown)" if "@" in url else repr(url)


def fault_of_text(what: str, text: str, *, least: Literal[0, 1]) -> str | None:
    """What is wrong with a text for people; None where nothing is. `least` 0: it may be empty."""
    if len(text) <= LONGEST_TEXT and text.isprintable() and (least == 0 or text.strip()):
        return None
    wanted = "printable characters, not blanks alone," if least else "printable characters"
    return f"the {what} is {text!r}; {least} to {LONGEST_TEXT} {wanted} were wanted"


def _fault_of_types(event_types: Sequence[str]) -> str | None:
    if unknown := sorted(set(event_types) - set(EVENT_TYPES)):
        return f"the event type is {unknown[0]!r}; one of {', '.join(EVENT_TYPES)} was wanted"
    return None if event_types else f"no event type is given; one or more of {', '.join(EVENT_TYPES)} were wanted"

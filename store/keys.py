"""Tenants, their API keys, and trainers' join tokens. Called by the gateway's interceptors and its command line;
knows no RPC.

A secret is shown once, when it is made; the database keeps its SHA-256. A caller's key opens no trainer's door and a
trainer's token no caller's: they stand in two tables and bear two prefixes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import bindparam, insert, or_, select, text, update

from store import names
from store.database import Database, Transaction
from store.dialect import now
from store.errors import NameTaken, NotFound
from store.ids import new_id
from store.tables import ApiKey, Tenant, TrainerToken, api_keys, record, tenants, trainer_tokens


@dataclass(frozen=True)
class Caller:
    """Who a request comes from."""

    tenant_id: str
    """UUID of the tenant."""
    tenant_name: str
    """Its name: the owner in "owner:name"."""
    key_id: str
    """The key, for logs."""
    scopes: frozenset[str]
    """What the key may do; "*" is everything."""
    is_operator: bool
    """Whether the tenant may publish assets to all."""
    request_rate: float | None = None
    """Requests a second that the operator grants it at each gateway; None: what the gateway grants all."""


@dataclass(frozen=True)
class KeyStanding:
    """A key as its operator sees it."""

    key: ApiKey
    """The row."""
    tenant_name: str
    """Whose it is."""
    at: datetime
    """When it was looked at, by the database's clock."""

    @property
    def state(self) -> Literal["valid", "expired", "revoked"]:
        """Whether it is accepted, and why not."""
        if self.key.revoked_at is not None:
            return "revoked"
        return "expired" if self.key.expires_at is not None and self.key.expires_at <= self.at else "valid"


async def create_tenant(
    db: Database,
    name: str,
    *,
    is_operator: bool = False,
    weight: float = 1.0,
    queue_limit: int = 10_000,
    running_limit: int = 1_000,
) -> Tenant:
    """Makes a tenant. NameTaken where the name is in use; ValueError where it is no name for one."""
    values = {"weight": weight, "queue_limit": queue_limit, "running_limit": running_limit}
    async with db.write() as transaction:
        await _check_new(transaction, name)
        tenant, made = await tenant_named(transaction, name, is_operator=is_operator, **values)
    if not made:
        raise NameTaken(f"there is a tenant {name!r} already")
    return tenant


async def find_or_create_tenant(
    db: Database,
    name: str,
    *,
    is_operator: bool = False,
    weight: float = 1.0,
    queue_limit: int = 10_000,
    running_limit: int = 1_000,
) -> Tenant:
    """The tenant of that name, made so where there is none yet; safe where two gateways start at once. ValueError: no
    new one may have the name.
    """
    values = {"weight": weight, "queue_limit": queue_limit, "running_limit": running_limit}
    async with db.write() as transaction:
        await _check_new(transaction, name)
        tenant, _ = await tenant_named(transaction, name, is_operator=is_operator, **values)
    return tenant


async def tenant_named(transaction: Transaction, name: str, **values: Any) -> tuple[Tenant, bool]:  # noqa: ANN401
    """Within a transaction: the tenant of that name, locked, and whether it was made here with these values."""
    values = {"id": str(uuid.uuid4()), "name": name, "is_operator": False, **values}
    made = await transaction.execute(
        _MAKE_TENANT, {"weight": 1.0, "queue_limit": 10_000, "running_limit": 1_000, **values}
    )
    row = (await transaction.execute(_LOCK_TENANT, {"name": name})).one()
    return record(Tenant, row), made.rowcount == 1


#: Both databases know ON CONFLICT, which SQLAlchemy has in their dialects only. The row of another transaction that
#: is not yet committed is waited for.
_MAKE_TENANT = text(
    "INSERT INTO tenants (id, name, is_operator, weight, queue_limit, running_limit, created_at)"
    " VALUES (:id, :name, :is_operator, :weight, :queue_limit, :running_limit, tunesmith_now())"
    " ON CONFLICT (name) DO NOTHING"
)
_LOCK_TENANT = select(tenants).where(tenants.c.name == bindparam("name")).with_for_update(key_share=True)


async def _check_new(transaction: Transaction, name: str) -> None:
    """One that is there from before these rules goes on."""
    fault = names.fault_of_tenant(name)
    if fault is not None and (await transaction.execute(_LOCK_TENANT, {"name": name})).first() is None:
        raise ValueError(fault)


async def create_key(
    db: Database, tenant_id: str, name: str, scopes: Sequence[str] = ("*",), expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Makes a key and returns it with its secret, "ts_...", which cannot be had again.

    ValueError: it may not have that name. NotFound: no such tenant.
    """
    if (fault := names.fault_of_key(name)) is not None:
        raise ValueError(fault)
    secret = _secret("ts_")
    values = {"id": new_id("key"), "tenant_id": tenant_id, "name": name, "hash": _hash(secret), "scopes": list(scopes)}
    made = insert(api_keys).values(**values, expires_at=expires_at, created_at=now()).returning(*api_keys.c)
    async with db.write() as transaction:
        known = await transaction.execute(select(tenants.c.id).where(tenants.c.id == tenant_id))
        if known.first() is None:
            raise NotFound(f"there is no tenant {tenant_id}")
        row = (await transaction.execute(made)).one()
    return record(ApiKey, row), secret


async def authenticate(db: Database, secret: str) -> Caller | None:
    """Who the secret belongs to; None where it is unknown, expired or revoked."""
    if not secret.startswith("ts_"):
        return None
    digest = _hash(secret)
    async with db.read() as connection:
        row = (await connection.execute(_CALLER, {"hash": digest})).first()
    # The look-up by hash tells at most how a hash begins, and no secret can be made to fit one.
    if row is None or not hmac.compare_digest(row.hash, digest):
        return None
    scopes = frozenset(row.scopes)
    return Caller(row.tenant_id, row.tenant_name, row.id, scopes, row.is_operator, row.request_rate)


#: By the unique index on the hash.
_CALLER = (
    select(
        api_keys.c.id,
        api_keys.c.hash,
        api_keys.c.tenant_id,
        api_keys.c.scopes,
        tenants.c.name.label("tenant_name"),
        tenants.c.is_operator,
        tenants.c.request_rate,
    )
    .join(tenants, tenants.c.id == api_keys.c.tenant_id)
    .where(
        api_keys.c.hash == bindparam("hash"),
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now()),
    )
)


async def list_keys(db: Database, tenant_name: str | None = None) -> list[KeyStanding]:
    """All keys, or the tenant's: by tenant, then by age; expired and revoked ones too. NotFound: no such tenant."""
    query = _KEYS if tenant_name is None else _KEYS.where(tenants.c.name == tenant_name)
    async with db.read() as connection:
        rows = (await connection.execute(query.order_by(tenants.c.name, api_keys.c.created_at, api_keys.c.id))).all()
        if not rows and tenant_name is not None:
            known = await connection.execute(select(tenants.c.id).where(tenants.c.name == tenant_name))
            if known.first() is None:
                raise NotFound(f"there is no tenant {tenant_name!r}")
    return [_key_standing(row) for row in rows]


async def revoke(db: Database, given: str) -> tuple[KeyStanding, bool]:
    """From now on the key is not accepted. Returns it, and whether it was until now: it is safe to repeat.

    `given` is its id, or the secret itself: all that one has of a key that has leaked. NotFound: there is no such key.
    No message repeats what may be a secret.
    """
    given = _pasted(given)
    which = or_(api_keys.c.id == given, api_keys.c.hash == _hash(given))
    revoked = update(api_keys).where(which, api_keys.c.revoked_at.is_(None)).values(revoked_at=now())
    async with db.write() as transaction:
        ended = (await transaction.execute(revoked)).rowcount
        row = (await transaction.execute(_KEYS.where(which))).first()
    if row is None:
        is_id = re.fullmatch(r"key_\w{1,64}", given) is not None
        named = f"key {given}" if is_id else "such key; an id, key_..., or a key itself, ts_..., was wanted"
        raise NotFound(f"there is no {named}")
    return _key_standing(row), ended == 1


_KEYS = select(api_keys, tenants.c.name.label("tenant_name"), now().label("at")).join(
    tenants, tenants.c.id == api_keys.c.tenant_id
)


def _key_standing(row: Any) -> KeyStanding:  # noqa: ANN401  # a row of _KEYS
    columns = dict(row._mapping)
    tenant_name, at = columns.pop("tenant_name"), columns.pop("at")
    return KeyStanding(record(ApiKey, columns), tenant_name, at)


async def create_trainer_token(db: Database, trainer_id: str) -> str:
    """Makes a join token, "tt_...", for the trainer, beside those that it has. It cannot be had again."""
    secret = _secret("tt_")
    made = insert(trainer_tokens).values(hash=_hash(secret), trainer_id=trainer_id, created_at=now())
    async with db.write() as transaction:
        await transaction.execute(made)
    return secret


async def authenticate_trainer(db: Database, secret: str) -> str | None:
    """The trainer that the token names; None where it is unknown or revoked."""
    if not secret.startswith("tt_"):
        return None
    digest = _hash(secret)
    query = select(trainer_tokens).where(trainer_tokens.c.hash == digest, trainer_tokens.c.revoked_at.is_(None))
    async with db.read() as connection:
        row = (await connection.execute(query)).first()
    if row is None or not hmac.compare_digest(row.hash, digest):
        return None
    return str(row.trainer_id)


async def list_trainer_tokens(db: Database) -> list[TrainerToken]:
    """All join tokens, by trainer, then by age; revoked ones too."""
    query = select(trainer_tokens).order_by(*(trainer_tokens.c[each] for each in ("trainer_id", "created_at", "hash")))
    async with db.read() as connection:
        return [record(TrainerToken, row) for row in await connection.execute(query)]


async def revoke_trainer_tokens(db: Database, given: str) -> tuple[str, int, datetime]:
    """From now on none of the trainer's tokens is accepted; where `given` is a token itself, not that one. Returns the
    trainer, how many that ended, none where all were revoked before, and since when the last of them is.

    NotFound: the trainer never had a token, or nobody knows this one, which no message repeats.
    """
    given = _pasted(given)
    which = or_(trainer_tokens.c.trainer_id == given, trainer_tokens.c.hash == _hash(given))
    revoked = update(trainer_tokens).where(which, trainer_tokens.c.revoked_at.is_(None)).values(revoked_at=now())
    last = select(trainer_tokens.c.trainer_id, trainer_tokens.c.revoked_at).order_by(trainer_tokens.c.revoked_at.desc())
    async with db.write() as transaction:
        ended = (await transaction.execute(revoked)).rowcount
        row = (await transaction.execute(last.where(which))).first()
    if row is None:
        is_id = re.fullmatch(r"(?!tt_|ts_)[A-Za-z0-9_-]{1,64}", given) is not None
        raise NotFound(f"there is no token of a trainer {given!r}" if is_id else "there is no such token")
    return str(row.trainer_id), ended, row.revoked_at


def _pasted(given: str) -> str:
    """What is meant by what stands in a header, or was copied with a blank."""
    return given.strip().removeprefix("Bearer ").strip()


def _secret(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(32)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""Tenants, their API keys, and trainers' join tokens. Called by the gateway's interceptors and its command line; knows no RPC.

A secret is shown once, when it is made; the database keeps its SHA-256. A caller's key opens no trainer's door and a trainer's
token no caller's: they stand in two tables and bear two prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from store.database import Database
from store.tables import ApiKey, Tenant


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


async def create_tenant(
    db: Database,
    name: str,
    *,
    is_operator: bool = False,
    weight: float = 1.0,
    queue_limit: int = 10_000,
    running_limit: int = 1_000,
) -> Tenant:
    """Makes a tenant. NameTaken where the name is in use."""
    raise NotImplementedError


async def find_or_create_tenant(db: Database, name: str, *, is_operator: bool = False) -> Tenant:
    """The tenant of that name, made where there is none yet; safe where two gateways start at once."""
    raise NotImplementedError


async def create_key(
    db: Database, tenant_id: str, name: str, scopes: Sequence[str] = ("*",), expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Makes a key and returns it with its secret, "ts_...", which cannot be had again. NotFound: no such tenant."""
    raise NotImplementedError


async def authenticate(db: Database, secret: str) -> Caller | None:
    """Who the secret belongs to; None where it is unknown, expired or revoked."""
    raise NotImplementedError


async def list_keys(db: Database, tenant_id: str) -> list[ApiKey]:
    """The tenant's keys, oldest first, revoked ones too."""
    raise NotImplementedError


async def revoke(db: Database, key_id: str) -> None:
    """From now on the key is not accepted. NotFound: no such key. Safe to repeat."""
    raise NotImplementedError


async def create_trainer_token(db: Database, trainer_id: str) -> str:
    """Makes a join token, "tt_...", for the trainer, beside those that it has. It cannot be had again."""
    raise NotImplementedError


async def authenticate_trainer(db: Database, secret: str) -> str | None:
    """The trainer that the token names; None where it is unknown or revoked."""
    raise NotImplementedError


async def revoke_trainer_tokens(db: Database, trainer_id: str) -> int:
    """From now on none of the trainer's tokens is accepted. Returns how many that ended."""
    raise NotImplementedError

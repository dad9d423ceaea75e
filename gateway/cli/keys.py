"""`tunesmith key` and `tunesmith trainer-token`: make and revoke secrets in the database of TUNESMITH_DATABASE_URL.
Called by the command line. `tunesmith up` makes its own: see up.py.

A secret is printed once, alone on standard output, so that a script can take it; what is said about it goes to standard
error.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import cyclopts

from gateway.cli.database import in_database
from store import keys
from store.database import Database

Scope = Literal["*", "tune:*", "tune:read", "tune:write", "asset:*", "asset:read", "asset:write"]
TRAINER_ID = r"[A-Za-z0-9_-]{1,64}"  # what the trainer's own settings take

key = cyclopts.App(name="key", help="Keys of callers, in the database of TUNESMITH_DATABASE_URL.")
trainer_token = cyclopts.App(name="trainer-token", help="Join tokens of trainers, in the same database.")


@key.command(name="create")
def create_key(
    tenant: str,
    *,
    name: str = "",
    scope: tuple[Scope, ...] = ("*",),
    days: Annotated[float | None, cyclopts.Parameter(validator=cyclopts.validators.Number(gt=0))] = None,
    operator: bool = False,
) -> int:
    """Make an API key and print it. The database keeps its hash only: it cannot be had again.

    Parameters
    ----------
    tenant
        Whose key; the tenant is made if there is none of that name.
    name
        What the key is for.
    scope
        What it may do; repeat for more than one. Everything, if not given.
    days
        Days until it expires. Never, if not given.
    operator
        The tenant may publish assets to all tenants. Said when the tenant is made.
    """

    async def create(database: Database) -> None:
        owner = await keys.find_or_create_tenant(database, tenant, is_operator=operator)
        if operator and not owner.is_operator:
            raise ValueError(f"tenant {tenant!r} is there already, and no operator")
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made, secret = await keys.create_key(database, owner.id, name, scope, expires_at)
        print(f"{made.id} of tenant {tenant} ({owner.id})", file=sys.stderr)
        print(secret)

    return in_database(create)


@key.command(name="revoke")
def revoke_key(key_id: str) -> int:
    """Stop accepting an API key. Gateways notice within seconds.

    Parameters
    ----------
    key_id
        As `key create` said it, and as the log has it: key_...
    """
    return in_database(lambda database: keys.revoke(database, key_id))


@trainer_token.command(name="create")
def create_trainer_token(trainer_id: str) -> int:
    """Make a join token for a trainer and print it, beside those that it has.

    Parameters
    ----------
    trainer_id
        The trainer's stable name: its TUNESMITH_TRAINER_ID.
    """

    async def create(database: Database) -> None:
        if re.fullmatch(TRAINER_ID, trainer_id) is None:
            raise ValueError(f"{trainer_id!r} is no trainer id; 1 to 64 letters, digits, _ and - were wanted")
        print(await keys.create_trainer_token(database, trainer_id))

    return in_database(create)


@trainer_token.command(name="revoke")
def revoke_trainer_tokens(trainer_id: str) -> int:
    """Stop accepting a trainer's tokens, all of them.

    Parameters
    ----------
    trainer_id
        The trainer's stable name.
    """

    async def revoke(database: Database) -> None:
        ended = await keys.revoke_trainer_tokens(database, trainer_id)
        print(f"{ended} of {trainer_id}'s tokens ended", file=sys.stderr)

    return in_database(revoke)

"""`tunesmith key` and `tunesmith trainer-token`: make, list and revoke secrets in the database of
TUNESMITH_DATABASE_URL. Called by the command line. `tunesmith up` makes its own: see up.py.

A secret is printed once, alone on standard output, so that a script can take it; what is said about it goes to standard
error, and never repeats one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import cyclopts

from gateway.cli.columns import NOTHING, lines
from gateway.cli.database import in_database
from gateway.cli.faults import refuse
from store import keys, names, tenants
from store.database import Database
from store.keys import KeyStanding
from store.tables import TrainerToken

Scope = Literal["*", "tune:*", "tune:read", "tune:write", "asset:*", "asset:read", "asset:write"]
Create = Annotated[bool, cyclopts.Parameter(negative="")]
MOST_DAYS = 36_525  # a hundred years, which is for ever
COLUMNS = ("KEY", "TENANT", "STATE", "MADE", "EXPIRES", "REVOKED", "SCOPES", "NAME")
TOKEN_COLUMNS = ("TRAINER", "MADE", "REVOKED")
TRAINER_ID = r"[A-Za-z0-9_-]{1,64}"  # what the trainer's own settings take

key = cyclopts.App(name="key", help="Keys of callers, in the database of TUNESMITH_DATABASE_URL.")
trainer_token = cyclopts.App(name="trainer-token", help="Join tokens of trainers, in the same database.")


@key.command(name="create")
def create_key(
    tenant: str,
    *,
    name: str = "",
    # Without `negative` cyclopts would offer --empty-scope, for a key that may do nothing.
    scope: Annotated[tuple[Scope, ...], cyclopts.Parameter(negative="")] = ("*",),
    days: float | None = None,
    operator: bool = False,
    create_database: Create = False,
) -> int:
    """Make an API key and print it. The database keeps its hash only: it cannot be had again.

    Parameters
    ----------
    tenant
        Whose key; the tenant is made if there is none of that name: 1 to 128 printable characters, but no colon.
    name
        What the key is for: up to 128 printable characters.
    scope
        What it may do; repeat for more than one. Everything, if not given.
    days
        Days until it expires, above 0, at most 36525. Never, if not given.
    operator
        The tenant may publish assets to all tenants. Said when the tenant is made.
    create_database
        Make the tables, and the SQLite file that TUNESMITH_DATABASE_URL names, where there are none, as a gateway's
        first start does. What an older release has made is left to a gateway to upgrade.
    """

    def faults(known: Collection[str] = ()) -> list[str | None]:
        named = None if tenant in known else names.fault_of_tenant(tenant)
        return [named, names.fault_of_key(name), _fault_of_days(days)]

    async def create(database: Database) -> None:
        refuse(faults({each.name for each in await tenants.list_tenants(database)}))
        owner = await keys.find_or_create_tenant(database, tenant, is_operator=operator)
        if operator and not owner.is_operator:
            raise ValueError(f"tenant {tenant!r} is there already, and no operator")
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made, secret = await keys.create_key(database, owner.id, name, scope, expires_at)
        print(f"{made.id} of tenant {tenant} ({owner.id})", file=sys.stderr)
        print(secret)

    return in_database(create, create=faults if create_database else None)


@key.command(name="list")
def list_keys(*, tenant: str | None = None) -> int:
    """Print all keys, or a tenant's: what each may do, and whether it is valid, expired or revoked. Not the secrets, of
    which the database keeps a hash only.

    Parameters
    ----------
    tenant
        The tenant's name.
    """

    async def show(database: Database) -> None:
        print(lines([COLUMNS, *map(_cells, await keys.list_keys(database, tenant))]))

    return in_database(show)


@key.command(name="revoke")
def revoke_key(key_id: str) -> int:
    """Stop accepting an API key. Gateways notice within seconds.

    Parameters
    ----------
    key_id
        The key's id, key_..., as `key list` prints it and `key_id` in the log says it; or the key itself, ts_..., where
        it has leaked.
    """

    async def revoke(database: Database) -> None:
        standing, was_valid = await keys.revoke(database, key_id)
        row = standing.key
        named = f"{row.id} of tenant {standing.tenant_name}" + (f", {row.name!r}," if row.name else "")
        before = "" if was_valid else f" already, since {_time(row.revoked_at)}"
        print(f"{named} is revoked{before}", file=sys.stderr)

    return in_database(revoke)


@trainer_token.command(name="create")
def create_trainer_token(trainer_id: str, *, create_database: Create = False) -> int:
    """Make a join token for a trainer and print it, beside those that it has.

    Parameters
    ----------
    trainer_id
        The trainer's stable name: its TUNESMITH_TRAINER_ID.
    create_database
        Make the tables, and the SQLite file that TUNESMITH_DATABASE_URL names, where there are none, as a gateway's
        first start does. What an older release has made is left to a gateway to upgrade.
    """

    def faults() -> list[str | None]:
        if re.fullmatch(TRAINER_ID, trainer_id) is not None:
            return []
        return [f"{trainer_id!r} is no trainer id; 1 to 64 letters, digits, _ and - were wanted"]

    async def create(database: Database) -> None:
        refuse(faults())
        print(await keys.create_trainer_token(database, trainer_id))

    return in_database(create, create=faults if create_database else None)


@trainer_token.command(name="list")
def list_trainer_tokens() -> int:
    """Print which trainers have join tokens, a line for each token. Not the tokens, of which the database keeps a hash
    only.
    """

    async def show(database: Database) -> None:
        print(lines([TOKEN_COLUMNS, *map(_token_cells, await keys.list_trainer_tokens(database))]))

    return in_database(show)


@trainer_token.command(name="revoke")
def revoke_trainer_tokens(trainer_id: str) -> int:
    """Stop accepting a trainer's tokens, all of them; or one token.

    Parameters
    ----------
    trainer_id
        The trainer's stable name; or a token itself, tt_..., where it has leaked.
    """

    async def revoke(database: Database) -> None:
        whose, ended, since = await keys.revoke_trainer_tokens(database, trainer_id)
        which = f"{whose}'s tokens are" if trainer_id.strip() == whose else f"this token of {whose} is"
        said = f"{ended} of {whose}'s tokens ended" if ended else f"{which} revoked already, since {_time(since)}"
        print(said, file=sys.stderr)

    return in_database(revoke)


def _fault_of_days(days: float | None) -> str | None:
    if days is None or 0 < days <= MOST_DAYS:
        return None
    return f"the days are {days:g}; a number above 0, at most {MOST_DAYS}, was wanted"


def _cells(standing: KeyStanding) -> tuple[str, ...]:
    row = standing.key
    times = map(_time, (row.created_at, row.expires_at, row.revoked_at))
    return (row.id, standing.tenant_name, standing.state, *times, ",".join(row.scopes), row.name or NOTHING)


def _token_cells(token: TrainerToken) -> tuple[str, ...]:
    return (token.trainer_id, _time(token.created_at), _time(token.revoked_at))


def _time(at: datetime | None) -> str:
    return NOTHING if at is None else f"{at:%Y-%m-%d %H:%M}"

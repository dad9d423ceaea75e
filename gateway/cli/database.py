"""Does one piece of work in the database of TUNESMITH_DATABASE_URL. Called by the commands that look after keys,
tenants, trainers and webhooks; knows none of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence

from gateway.cli.faults import refuse
from store.database import Database
from store.errors import NotFound, StoreError

HOW_TO_MAKE = (
    "a gateway makes it when it starts, and so do `key create` and `trainer-token create` with --create-database; or"
    " TUNESMITH_DATABASE_URL is mistyped"
)


def in_database(
    work: Callable[[Database], Awaitable[None]],
    *,
    wakes: bool = False,
    create: Callable[[], Sequence[str | None]] | None = None,
) -> int:
    """Runs it; returns the exit code. A database that is behind is refused, for to upgrade it is a gateway's affair.

    `wakes`: gateways are to hear of it at once. `create`: a database that is not there, or has no tables, is made,
    unless this finds faults in the order.
    """

    async def run(url: str) -> None:
        try:
            database = await _opened(url, wakes=wakes)
        except NotFound as exc:
            if create is None:
                raise ValueError(f"{exc}; {HOW_TO_MAKE}") from exc
            refuse(create())
            database = await _opened(url, wakes=wakes, make=True)
        try:
            await work(database)
        finally:
            await database.close()

    url = os.environ.get("TUNESMITH_DATABASE_URL", "")
    try:
        if not url:
            raise ValueError("TUNESMITH_DATABASE_URL is not set; the gateway's was wanted")
        asyncio.run(run(url))
    except (StoreError, ValueError) as error:
        for fault in (str(error) or repr(error)).splitlines():
            print(f"tunesmith: {fault}", file=sys.stderr)
        return 1
    return 0


async def _opened(url: str, *, wakes: bool, make: bool = False) -> Database:
    """An open database that has the tables of this release."""
    try:
        database = await Database.open(url, pool_size=1, wakeups=wakes, create=make)
        try:
            await (database.migrate() if make else database.check())
        except BaseException:
            await database.close()
            raise
    except ValueError as exc:
        raise ValueError(f"TUNESMITH_DATABASE_URL=(not shown): {exc}") from exc
    return database

"""Does one piece of work in the database of TUNESMITH_DATABASE_URL. Called by the commands that look after keys,
tenants, trainers and webhooks; knows none of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from store.database import Database
from store.errors import NotFound, StoreError

HOW_TO_MAKE = (
    "a gateway makes it when it starts, and so do `key create` and `trainer-token create` with --create-database; or"
    " TUNESMITH_DATABASE_URL is mistyped"
)


def in_database(work: Callable[[Database], Awaitable[None]], *, wakes: bool = False, create: bool = False) -> int:
    """Runs it; returns the exit code. The schema is made if no gateway has done so yet.

    `wakes`: gateways are to hear of it at once. `create`: so is the file, where the database is one.
    """

    async def run(url: str) -> None:
        try:
            database = await Database.open(url, pool_size=1, wakeups=wakes, create=create)
        except NotFound as exc:
            raise ValueError(f"{exc}; {HOW_TO_MAKE}") from exc
        try:
            await database.migrate()
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

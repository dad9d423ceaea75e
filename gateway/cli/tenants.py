"""`tunesmith tenant`: what an operator grants each tenant, in the database of TUNESMITH_DATABASE_URL. Called by the
command line. Tenants are made with their first key: see keys.py.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import cyclopts

from gateway.cli.columns import lines
from gateway.cli.database import in_database
from gateway.cli.faults import refuse
from gateway.cli.numbers import WHOLE
from store import tenants
from store.database import Database
from store.tables import Tenant

tenant = cyclopts.App(name="tenant", help="Shares and limits of tenants, in the database of TUNESMITH_DATABASE_URL.")

COLUMNS = ("TENANT", "WEIGHT", "RUNNING", "LIMIT", "QUEUED", "LIMIT", "RATE", "ID")


@tenant.command(name="set")
def set_limits(
    name: str,
    *,
    weight: float | None = None,
    running_limit: Annotated[int | None, WHOLE] = None,
    queue_limit: Annotated[int | None, WHOLE] = None,
    rate: float | Literal["default"] | None = None,
) -> int:
    """Change a tenant's share and limits; what is not given stays. Gateways go by it from their next look at the queue,
    and by a rate within seconds.

    Parameters
    ----------
    name
        The tenant's.
    weight
        Share of the trainers against other tenants', 0.001 to 1000000. With 2 it gets twice what one with 1 gets.
    running_limit
        Tunes that may run at once, 0 and up. With 0 none is started any more.
    queue_limit
        Tunes that may wait at once, 0 and up. With 0 none is accepted any more.
    rate
        Requests a second at each gateway, 0.001 to 1000000; "default" is what the gateway's
        TUNESMITH_REQUESTS_PER_SECOND says.
    """

    async def change(database: Database) -> None:
        faults = tenants.faults_of_limits(weight, running_limit, queue_limit, rate)
        if name not in {each.name for each in await tenants.list_tenants(database)}:
            faults.insert(0, f"there is no tenant {name!r}")
        refuse(faults)
        changed = await tenants.set_limits(
            database, name, weight=weight, running_limit=running_limit, queue_limit=queue_limit, rate=rate
        )
        print(_table([changed]), file=sys.stderr)

    return in_database(change)


@tenant.command(name="list")
def list_tenants() -> int:
    """Print all tenants with their shares, their limits, and how many of their tunes run and wait."""

    async def show(database: Database) -> None:
        print(_table(await tenants.list_tenants(database)))

    return in_database(show)


def _table(rows: list[Tenant]) -> str:
    return lines([COLUMNS, *map(_cells, rows)])


def _cells(row: Tenant) -> tuple[str, ...]:
    counts = (row.running, row.running_limit, row.queued, row.queue_limit)
    rate = "default" if row.request_rate is None else f"{row.request_rate:g}"
    return (row.name, f"{row.weight:g}", *map(str, counts), rate, row.id)

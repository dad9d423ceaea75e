"""What an operator sets of a tenant, and how its tunes stand against it. Called by the command line, and by
gateway/places for the reason why a tune waits; tenants are made in keys.py, and what a limit means is in claims.py and
submission.py.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import bindparam, select, update

from store.database import Database
from store.errors import NotFound
from store.tables import Tenant, record, tenants

MOST = 2**31 - 1  # that the columns hold
#: Of a rate, requests a second, and of a weight: beyond them arithmetic on floats ends, or a wait of days begins.
LEAST_RATE, MOST_RATE = 0.001, 1_000_000


async def set_limits(
    db: Database,
    name: str,
    *,
    weight: float | None = None,
    running_limit: int | None = None,
    queue_limit: int | None = None,
    rate: float | Literal["default"] | None = None,
) -> Tenant:
    """Changes what is given and leaves the rest. Tunes that run or wait already are left as they are: a limit below
    their number lets no further one in. `rate` is requests a second at each gateway, or "default": what it grants all.

    ValueError: values are out of range, a line for each, or none is given. NotFound: no such tenant.
    """
    if faults := faults_of_limits(weight, running_limit, queue_limit, rate):
        raise ValueError("\n".join(faults))
    given = {"weight": weight, "running_limit": running_limit, "queue_limit": queue_limit}
    values: dict[str, Any] = {column: value for column, value in given.items() if value is not None}
    if rate is not None:
        values["request_rate"] = None if rate == "default" else rate
    if not values:
        raise ValueError("nothing to set; a weight, a running limit, a queue limit or a rate was wanted")
    changed = update(tenants).where(tenants.c.name == name).values(**values).returning(*tenants.c)
    async with db.write() as transaction:
        row = (await transaction.execute(changed)).first()
    if row is None:
        raise NotFound(f"there is no tenant {name!r}")
    return record(Tenant, row)


def faults_of_limits(
    weight: float | None, running_limit: int | None, queue_limit: int | None, rate: float | Literal["default"] | None
) -> list[str]:
    """What is wrong with them, a sentence for each that is."""
    bounds = f"{LEAST_RATE:g} to {MOST_RATE}"
    faults = []
    if weight is not None and not LEAST_RATE <= weight <= MOST_RATE:
        faults.append(f"the weight is {weight:g}; {bounds} was wanted")
    for what, limit in (("running limit", running_limit), ("queue limit", queue_limit)):
        if limit is not None and not 0 <= limit <= MOST:
            faults.append(f"the {what} is {limit}; 0 to {MOST} was wanted")
    if isinstance(rate, float | int) and not LEAST_RATE <= rate <= MOST_RATE:
        faults.append(f"the rate is {rate:g}; {bounds}, or default, was wanted")
    return faults


async def list_tenants(db: Database) -> list[Tenant]:
    """All of them, by name."""
    async with db.read() as connection:
        return [record(Tenant, row) for row in await connection.execute(select(tenants).order_by(tenants.c.name))]


async def find_tenant(db: Database, tenant_id: str) -> Tenant:
    """The tenant. NotFound: there is none."""
    async with db.read() as connection:
        row = (await connection.execute(_FIND, {"tenant": tenant_id})).first()
    if row is None:
        raise NotFound(f"there is no tenant {tenant_id}")
    return record(Tenant, row)


_FIND = select(tenants).where(tenants.c.id == bindparam("tenant"))  # by the primary key

"""What an operator sets of a tenant."""

from __future__ import annotations

import math
from typing import Any

import pytest

from store import errors, keys, tenants, tunes
from store.database import Database
from tests.store.world import World


async def test_what_is_not_given_stays(database: Database) -> None:
    made = await keys.create_tenant(database, "acme", weight=3.0, queue_limit=7)

    changed = await tenants.set_limits(database, "acme", running_limit=2)

    assert (changed.id, changed.weight, changed.running_limit, changed.queue_limit) == (made.id, 3.0, 2, 7)
    assert await tenants.find_tenant(database, made.id) == changed


async def test_running_limit_holds_from_the_next_claim_and_leaves_what_runs(world: World) -> None:
    running, _ = await world.running(), await world.queued()

    await tenants.set_limits(world.database, "acme", running_limit=1)
    held_back = await world.claim("trainer-2")
    await tenants.set_limits(world.database, "acme", running_limit=2)
    let_in = await world.claim("trainer-2")

    assert held_back is None
    assert let_in is not None
    assert (await world.tune(running.tune.id)).lease_epoch == 1


async def test_queue_limit_holds_from_the_next_submission(world: World) -> None:
    await world.queued()

    await tenants.set_limits(world.database, "acme", queue_limit=1)

    with pytest.raises(errors.QueueFull):
        await tunes.submit(world.database, world.new_tune([await world.file()]))


async def test_tenants_are_listed_by_name_with_what_runs_and_waits(world: World) -> None:
    await keys.create_tenant(world.database, "zebra")
    await world.running()
    await world.queued()

    listed = await tenants.list_tenants(world.database)

    assert [(each.name, each.running, each.queued) for each in listed if each.name != "tunesmith"] == [
        ("acme", 1, 1),
        ("zebra", 0, 0),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": 0.0}, "the weight is 0; 0.001 to 1000000"),
        ({"weight": math.nan}, "the weight is nan"),
        ({"weight": math.inf}, "the weight is inf"),
        ({"running_limit": -1}, "the running limit is -1; 0 to"),
        ({"queue_limit": 2**31}, "the queue limit is 2147483648; 0 to 2147483647"),
        ({"rate": 0.0}, "the rate is 0"),
        ({"rate": 1e-300}, "the rate is 1e-300; 0.001 to 1000000, or default"),
        ({"rate": 1_000_001.0}, "the rate is"),
        ({"rate": math.nan}, "the rate is nan"),
        ({}, "nothing to set"),
    ],
)
async def test_value_out_of_range_is_named_and_nothing_changes(
    database: Database, given: dict[str, Any], said: str
) -> None:
    made = await keys.create_tenant(database, "acme")

    with pytest.raises(ValueError, match=said):
        await tenants.set_limits(database, "acme", **given)

    assert await tenants.find_tenant(database, made.id) == made


async def test_unknown_tenant_is_not_found(database: Database) -> None:
    with pytest.raises(errors.NotFound, match="'nobody'"):
        await tenants.set_limits(database, "nobody", weight=2.0)
    with pytest.raises(errors.NotFound):
        await tenants.find_tenant(database, "nobody")


async def test_a_callers_rate_is_its_tenants_until_it_is_given_back(database: Database) -> None:
    made = await keys.create_tenant(database, "acme")
    _, secret = await keys.create_key(database, made.id, "test")

    rates: list[float | None] = []
    for rate in (None, 0.5, "default"):
        if rate is not None:
            await tenants.set_limits(database, "acme", rate=rate)
        caller = await keys.authenticate(database, secret)
        assert caller is not None
        rates.append(caller.request_rate)

    assert rates == [None, 0.5, None]

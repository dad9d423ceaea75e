"""Fetches: who may begin one, for how long it is his, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from store import assets, fetches, keys, leases
from store.assets import NewAsset
from store.errors import NotFound, QueueFull
from store.fetches import Hold, NewFetch
from store.leftovers import leftovers
from store.tables import Asset, Fetch, record
from store.tables import fetches as table
from tests.store.world import LEASE as TUNE_LEASE
from tests.store.world import World

LEASE = 30.0  # seconds
URL = "https://shop.example/cat.png?key=secret"


async def ordered(world: World, *, tenant_id: str | None = None, **fetch: Any) -> Asset:
    new = NewAsset(tenant_id or world.tenant.id, "file", "cat.png", url="https://shop.example/cat.png")
    asked = NewFetch(**({"url": URL} | fetch))
    return await fetches.order(world.database, new, asked, pending_limit=3)


async def due(world: World, **given: Any) -> list[Fetch]:
    return await fetches.claim(world.database, LEASE, **({"tune_lease": TUNE_LEASE, "limit": 1} | given))


async def claimed(world: World, **given: Any) -> Fetch:
    [fetch] = await due(world, **given)
    return fetch


async def rows(world: World) -> list[Fetch]:
    async with world.database.read() as connection:
        return [record(Fetch, row) for row in await connection.execute(select(table))]


async def found(world: World, asset: Asset) -> Asset:
    return await assets.find(world.database, asset.tenant_id, asset.id)


async def test_ordered_fetch_is_claimed_once_and_again_when_its_gateway_falls_silent(world: World) -> None:
    asset = await ordered(world)

    first = await claimed(world)
    nobody = await due(world)
    await world.database.move_clock(LEASE + 1)
    second = await claimed(world)

    assert (asset.status, first.asset_id, first.url, first.tries) == ("ready_to_upload", asset.id, URL, 1)
    assert nobody == []
    assert (second.asset_id, second.tries) == (asset.id, 2)


async def test_renewed_fetch_stays_with_its_gateway(world: World) -> None:
    await ordered(world)
    fetch = await claimed(world)

    await world.database.move_clock(LEASE - 1)
    renewed = await fetches.put_off(world.database, fetch, LEASE)
    await world.database.move_clock(LEASE - 1)

    assert renewed is Hold.KEPT
    assert await due(world) == []


async def test_who_has_lost_a_fetch_changes_nothing_of_it(world: World) -> None:
    asset = await ordered(world)
    old = await claimed(world)
    await world.database.move_clock(LEASE + 1)
    new = await claimed(world)

    told = [await fetches.put_off(world.database, old, 0), await fetches.fail(world.database, old, "LATE", "too late")]
    told.append(await fetches.finish(world.database, old))

    assert told == [Hold.LOST] * 3
    assert [(row.asset_id, row.tries) for row in await rows(world)] == [(asset.id, new.tries)]
    assert (await found(world, asset)).status == "ready_to_upload"


async def test_failed_fetch_leaves_the_asset_in_error_with_its_reason_and_no_url(world: World) -> None:
    asset = await ordered(world)
    fetch = await claimed(world)

    told = await fetches.fail(world.database, fetch, "STATUS_NOT_OK", "shop.example answered 404")

    row = await found(world, asset)
    assert told is Hold.KEPT
    assert (row.status, row.status_details) == ("error", "shop.example answered 404")
    assert row.status_info == {"reason": "STATUS_NOT_OK"}
    assert await rows(world) == []


async def test_failure_says_nothing_of_an_asset_that_is_judged_already(world: World) -> None:
    asset = await ordered(world)
    fetch = await claimed(world)
    await assets.reject(world.database, world.tenant.id, asset.id, "TRUNCATED", "it ends early")

    await fetches.fail(world.database, fetch, "BROKEN_OFF", "it broke off")

    assert (await found(world, asset)).status == "rejected"
    assert await rows(world) == []


async def test_adopted_repository_is_ready_with_its_source(world: World) -> None:
    new = NewAsset(world.tenant.id, "checkpoint", "base", data={"engine": "image/x"}, hf_repo="o/r")
    asset = await fetches.order(world.database, new, NewFetch(hf_repo="o/r"), pending_limit=3)
    fetch = await claimed(world)
    source = {"hugging_face": "o/r", "commit": "a" * 40}

    await fetches.adopt(world.database, fetch, source, {"engine": "image/x", "file_format": "safetensors"})

    row = await found(world, asset)
    assert (row.status, row.source, row.file_structure) == ("ready", source, "multiple_files")
    assert (row.engine, row.file_format) == ("image/x", "safetensors")
    assert await rows(world) == []


async def test_deleted_assets_fetch_is_no_more(world: World) -> None:
    asset = await ordered(world)
    fetch = await claimed(world)

    await assets.delete(world.database, world.tenant.id, asset.id)

    assert await rows(world) == []
    assert await fetches.put_off(world.database, fetch, LEASE) is Hold.GONE
    assert await fetches.fail(world.database, fetch, "LATE", "too late") is Hold.GONE
    with pytest.raises(NotFound):
        await found(world, asset)


async def test_fetch_that_was_put_off_is_due_when_its_time_has_come(world: World) -> None:
    await ordered(world)
    await fetches.put_off(world.database, await claimed(world), 10)

    before = await due(world)
    await world.database.move_clock(11)
    after = await claimed(world)

    assert before == []
    assert after.tries == 2


async def test_busy_tenants_wait_and_the_others_do_not(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    first = await ordered(world)
    theirs = await ordered(world, tenant_id=other.id)

    fetch = await claimed(world, busy_tenants=[world.tenant.id])

    assert fetch.asset_id == theirs.id
    assert (await claimed(world)).asset_id == first.id


async def test_tenant_has_so_many_at_a_time_and_no_more(world: World) -> None:
    for _ in range(3):
        await ordered(world)

    with pytest.raises(QueueFull, match="3 of your assets are still to be fetched; at most 3 may be"):
        await ordered(world)
    await fetches.finish(world.database, await claimed(world))
    await ordered(world)


async def test_fetch_with_a_token_is_begun_by_who_has_it_and_by_another_when_that_one_has_gone(world: World) -> None:
    await ordered(world, url=None, hf_repo="o/r", token_ref="here")

    elsewhere = await due(world, token_refs=["other"])
    here = await claimed(world, token_refs=["other", "here"])
    await world.pass_time(fetches.TOKEN_LEASE - 1)
    still_not = await due(world)
    await world.pass_time(2)
    at_last = await claimed(world)

    assert (elsewhere, still_not) == ([], [])
    assert (here.tries, at_last.tries) == (1, 2)


async def test_token_that_its_gateway_speaks_for_is_not_lost_however_long_its_fetch_waits(world: World) -> None:
    asset = await ordered(world, url=None, hf_repo="o/r", token_ref="here")
    await ordered(world, url=None, hf_repo="o/r", token_ref="other")
    for _ in range(3):
        await world.pass_time(fetches.TOKEN_LEASE - 1)
        assert await fetches.keep(world.database, ["ended", "here"]) == {"here"}

    [lost] = await due(world, limit=5)
    here = await claimed(world, token_refs=["here"])

    assert (lost.token_ref, here.asset_id) == ("other", asset.id)


async def test_token_that_an_older_gateway_was_given_is_lost_when_its_fetch_is_long_overdue(world: World) -> None:
    await ordered(world, url=None, hf_repo="o/r", token_ref="there")
    async with world.database.write() as transaction:
        await transaction.execute(update(table).values(token_until=None))

    await world.pass_time(fetches.TOKEN_LEASE - 1)
    before = await due(world)
    await world.pass_time(2)

    assert before == []
    assert (await claimed(world)).token_ref == "there"


async def test_no_token_is_lost_to_an_outage_of_ours(world: World) -> None:
    asset = await ordered(world, url=None, hf_repo="o/r", token_ref="here")
    gone = await ordered(world, url=None, hf_repo="o/r", token_ref="gone")
    await world.database.move_clock(10 * fetches.TOKEN_LEASE)  # no database meanwhile: nobody spoke

    at_once = await due(world)
    await leases.reap(world.database, TUNE_LEASE)
    await world.pass_time(fetches.SPEAK)
    in_grace = await due(world)
    spoken_for = await fetches.keep(world.database, ["here"])
    await world.pass_time(TUNE_LEASE - fetches.SPEAK + 1)
    lost = await due(world, limit=5)

    assert (at_once, in_grace, spoken_for) == ([], [], {"here"})
    assert [fetch.asset_id for fetch in lost] == [gone.id]
    assert (await claimed(world, token_refs=["here"])).asset_id == asset.id


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("tune_lease", "outage"), [(3.0, 200.0), (600.0, 299.0)])
async def test_tokens_outlive_an_outage_whatever_the_lease_of_tunes(
    world: World, tune_lease: float, outage: float, older: bool
) -> None:
    await ordered(world, url=None, hf_repo="o/r", token_ref="here")
    if older:  # a gateway that speaks for no token
        async with world.database.write() as transaction:
            await transaction.execute(update(table).values(token_until=None))
    await world.pass_time(fetches.SPEAK)  # its gateway is about to speak
    await world.database.move_clock(outage)

    lost = []
    for _ in range(15):  # until it speaks again; some gateway claims all the while
        await leases.reap(world.database, tune_lease)
        lost += await due(world, tune_lease=tune_lease)
        await world.database.move_clock(fetches.SPEAK / 15)

    assert lost == []
    assert await fetches.keep(world.database, ["here"]) == {"here"}


async def test_fetch_that_the_claimer_is_at_is_left_to_it_though_its_lease_has_ended(world: World) -> None:
    asset = await ordered(world)
    fetch = await claimed(world)
    await world.database.move_clock(LEASE + 1)

    again = await due(world, under_way=[asset.id])

    assert again == []
    assert await fetches.put_off(world.database, fetch, LEASE) is Hold.KEPT


async def test_old_bytes_of_an_asset_that_is_being_fetched_are_no_leftovers(world: World) -> None:
    fetched, uploaded = await ordered(world), await world.file(ready=False)
    ages = {f"{place}/{asset.id}{name}": 1000.0 for asset in (fetched, uploaded) for place, name in PLACES}

    swept = await leftovers(world.database, ages, 100.0)

    assert sorted(swept) == sorted(f"{place}/{uploaded.id}{name}" for place, name in PLACES)


PLACES = (("incoming/assets", ""), ("assets", "/unjudged-1"))

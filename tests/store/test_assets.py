"""Assets as their owners, and others, see them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from store import assets, errors, keys
from store.assets import AssetFilter, NewAsset
from store.database import Database
from tests.store.world import ENGINE, World


async def test_an_upload_is_completed_once(world: World) -> None:
    made = await world.file(ready=False)
    judged: dict[str, Any] = {
        "size_bytes": 7,
        "sha256": "a" * 64,
        "object_key": "assets/x",
        "data": {"file_format": "jpg"},
    }

    first = await assets.complete(world.database, world.tenant.id, made.id, **judged)
    second = await assets.complete(
        world.database, world.tenant.id, made.id, size_bytes=8, sha256="b" * 64, object_key="assets/y"
    )

    assert (first.status, first.size_bytes, first.file_format) == ("ready", 7, "jpg")
    assert second.model_dump() == first.model_dump()
    rejected = await assets.reject(world.database, world.tenant.id, made.id, "LATE", "x")
    assert rejected.status == "ready"


async def test_a_rejected_upload_says_why(world: World) -> None:
    made = await world.file(ready=False)

    await assets.reject(world.database, world.tenant.id, made.id, "TRUNCATED", "It is cut off.", size_bytes=3)

    found = await assets.find(world.database, world.tenant.id, made.id)
    assert (found.status, found.status_details, found.status_info) == (
        "rejected",
        "It is cut off.",
        {"reason": "TRUNCATED"},
    )


async def test_a_name_gives_the_newest_living_one(world: World) -> None:
    new = NewAsset(world.tenant.id, "file", "star.png")
    first = await assets.create(world.database, new)
    await world.database.move_clock(1)
    second = await assets.create(world.database, new)

    assert (await assets.find(world.database, world.tenant.id, "star.png")).id == second.id
    await assets.delete(world.database, world.tenant.id, second.id)
    assert (await assets.find(world.database, world.tenant.id, "star.png")).id == first.id
    assert (await assets.find(world.database, world.tenant.id, "acme:star.png")).id == first.id


async def test_ones_own_name_comes_before_a_public_one(world: World) -> None:
    found = await assets.find(world.database, world.tenant.id, "tiny-shapes")
    assert found.id == world.checkpoint.id
    mine = await assets.create(
        world.database, NewAsset(world.tenant.id, "checkpoint", "tiny-shapes", data={"engine": ENGINE})
    )

    assert (await assets.find(world.database, world.tenant.id, "tiny-shapes")).id == mine.id
    assert (await assets.find(world.database, world.tenant.id, "tunesmith:tiny-shapes")).id == world.checkpoint.id


async def test_nobody_is_called_by_nothing(world: World) -> None:
    mine = await world.file()

    for name in (f":{mine.name}", f":{mine.id}", ":tiny-shapes", ":"):
        with pytest.raises(errors.NotFound):
            await assets.find(world.database, world.tenant.id, name)


async def test_anothers_asset_is_not_found(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    theirs = await world.file(tenant=other)

    for name in (theirs.id, theirs.name, f"other:{theirs.name}"):
        with pytest.raises(errors.NotFound):
            await assets.find(world.database, world.tenant.id, name)
    with pytest.raises(errors.NotFound):
        await assets.delete(world.database, world.tenant.id, theirs.id)
    with pytest.raises(errors.NotFound):
        await assets.delete(world.database, world.tenant.id, world.checkpoint.id)  # public, but not ours
    found = await assets.find_many(world.database, world.tenant.id, [theirs.id, world.checkpoint.id, "asset_none"])
    assert list(found) == [world.checkpoint.id]


async def test_filters_must_all_hold(world: World) -> None:
    picture = await world.file()
    lora = await assets.create(
        world.database,
        NewAsset(
            world.tenant.id, "lora", "l", data={"engine": ENGINE, "data_type": "fp16", "file_format": "safetensors"}
        ),
    )
    other = await keys.create_tenant(world.database, "other")
    await world.file(tenant=other)

    async def found(**which: object) -> list[str]:
        rows, total = await assets.list_assets(world.database, world.tenant.id, AssetFilter(**which))  # type: ignore[arg-type]
        assert total == len(rows)
        return sorted(row.id for row in rows)

    assert await found() == sorted([picture.id, lora.id])
    assert await found(name="l") == [lora.id]
    assert await found(is_public=True) == [world.checkpoint.id]
    assert await found(is_public=False) == sorted([picture.id, lora.id])
    assert await found(asset_types=["lora", "checkpoint"]) == [lora.id]
    assert await found(engines=[ENGINE], data_type="fp16") == [lora.id]
    assert await found(engine_type="image") == [lora.id]
    assert await found(engine_type="imag") == []
    assert await found(file_formats=["png", "safetensors"]) == sorted([picture.id, lora.id])
    assert await found(asset_ids=[picture.id, world.checkpoint.id]) == [picture.id]
    assert await found(asset_ids=[]) == []
    assert await found(owner="tunesmith") == [world.checkpoint.id]
    assert await found(owner="other") == []
    assert await found(owner="acme") == sorted([picture.id, lora.id])
    rows, total = await assets.list_assets(world.database, world.tenant.id, AssetFilter(limit=1, offset=1))
    assert (len(rows), total) == (1, 2)


async def test_publishing_twice_and_at_once_makes_one(database: Database, world: World, database_url: str) -> None:
    second = await Database.open(database_url)
    source = {"hugging_face": "a/b", "commit": "c" * 40}

    made = await asyncio.gather(
        *(assets.publish(db, "tunesmith", "sd15", ENGINE, source) for db in (database, second, database, second))
    )

    assert len({asset.id for asset in made}) == 1
    assert (made[0].status, made[0].is_public, made[0].source) == ("ready", True, source)
    await second.close()


async def test_an_asset_made_from_a_source_is_ready_at_once(world: World) -> None:
    made = await assets.create(
        world.database,
        NewAsset(world.tenant.id, "checkpoint", "c", data={"engine": ENGINE}, source={"builtin": "x"}, hf_repo="a/b"),
    )

    assert (made.status, made.hf_repo) == ("ready", "a/b")

"""The rounds of retention: each rule on its own terms, and the sweeper takes what one gave up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from gateway.retention import Retention, Terms
from gateway.sweeper import Sweeper
from store import assets, retention
from store.database import Database
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from tests.store.world import World, make_world

DAY = 86400.0


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


async def apply(world: World, terms: Terms) -> dict[str, int]:
    """One round; what it told of each rule."""
    with structlog.testing.capture_logs() as log:
        await Retention(world.database, terms, period_seconds=3600).apply()
    return {entry["rule"]: entry["count"] for entry in log}


async def test_nothing_goes_where_nothing_is_said(world: World) -> None:
    deleted = await world.file()
    await assets.delete(world.database, world.tenant.id, deleted.id)
    await world.database.move_clock(10_000 * DAY)

    assert await apply(world, Terms()) == {}


async def test_picture_deleted_long_ago_loses_its_bytes_by_the_sweeper(world: World, tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path, Signer("http://gateway.example", b"a secret of tests"))
    deleted, living = await world.file(), await world.file()
    for file in (deleted, living):
        assert file.object_key is not None
        await objects.write(file.object_key, one_byte())
    await assets.delete(world.database, world.tenant.id, deleted.id)
    await world.database.move_clock(8 * DAY)

    told = await apply(world, Terms(deleted_asset_days=7))
    await Sweeper(world.database, objects, leftover_seconds=0).sweep()

    assert told == {"release_assets": 1}
    assert [key async for key, _ in objects.list("")] == [living.object_key]


async def test_a_backlog_of_several_batches_goes_in_one_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_UNRELEASED", retention._UNRELEASED.limit(2))
    for _ in range(5):
        await assets.delete(world.database, world.tenant.id, (await world.file()).id)
    await world.database.move_clock(8 * DAY)

    assert await apply(world, Terms(deleted_asset_days=7)) == {"release_assets": 5}


async def one_byte() -> AsyncIterator[bytes]:
    yield b"x"

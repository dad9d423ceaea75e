"""The sweeper deletes what nobody needs any more, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.sweeper import Sweeper
from store import assets, reports, tunes
from store.database import Database
from store.leases import Snapshot
from store.objects.local import LocalObjects
from store.reports import LoraResult
from tests.store.world import World, make_world

SHA = "a" * 64


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path, "http://gateway.example", b"a secret of tests")


async def put(objects: LocalObjects, *keys: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"bytes"

    for key in keys:
        await objects.write(key, chunks())


async def left(world: World, objects: LocalObjects, age_seconds: float = 0.0) -> set[str]:
    """What is there after a round."""
    await Sweeper(world.database, objects, age_seconds=age_seconds).sweep()
    return {key async for key, _ in objects.list("")}


async def test_young_object_is_left_alone(world: World, objects: LocalObjects) -> None:
    await put(objects, f"incoming/assets/{(await world.file(ready=False)).id}")

    assert len(await left(world, objects, age_seconds=3600)) == 1


async def test_upload_that_was_never_completed_is_swept(world: World, objects: LocalObjects) -> None:
    waiting = await world.file(ready=False)
    await put(objects, f"incoming/assets/{waiting.id}", f"assets/{waiting.id}/unjudged")

    assert await left(world, objects) == {f"assets/{waiting.id}/unjudged"}, "it may be being judged"


async def test_ready_pictures_bytes_stay_also_when_it_is_deleted(world: World, objects: LocalObjects) -> None:
    ready, deleted = await world.file(), await world.file()
    await put(objects, f"assets/{ready.id}/{SHA}", f"assets/{deleted.id}/{SHA}", f"assets/{ready.id}/unjudged")
    await assets.delete(world.database, world.tenant.id, deleted.id)

    assert await left(world, objects) == {f"assets/{ready.id}/{SHA}", f"assets/{deleted.id}/{SHA}"}


async def test_rejected_pictures_bytes_are_swept(world: World, objects: LocalObjects) -> None:
    asset = await world.file(ready=False)
    await assets.reject(world.database, world.tenant.id, asset.id, "TRUNCATED", "cut off")
    await put(objects, f"assets/{asset.id}/unjudged")

    assert await left(world, objects) == set()


async def test_running_tune_keeps_all_of_its_epoch_and_two_snapshots(world: World, objects: LocalObjects) -> None:
    first = await world.running()
    tune = first.tune.id
    newest, before = (f"snapshots/{tune}/1/{step}-{SHA}.safetensors" for step in (20, 15))
    await reports.record_snapshot(world.database, first.lease, 1, Snapshot(before, 15, SHA, 5))
    await reports.record_snapshot(world.database, first.lease, 2, Snapshot(newest, 20, SHA, 5))
    await reports.give_back(world.database, first.lease, 3, 20)
    second = await world.claim()
    assert second is not None
    assert second.lease.epoch == 2
    old = [f"snapshots/{tune}/1/10-{SHA}.safetensors", f"incoming/{tune}/1/lora.safetensors"]
    new = [f"incoming/{tune}/2/lora.safetensors", f"loras/{tune}/2/{SHA}.safetensors"]
    await put(objects, newest, before, *old, *new)

    assert await left(world, objects) == {newest, before, *new}


async def test_finished_tune_keeps_its_lora_alone(world: World, objects: LocalObjects) -> None:
    claim = await world.running()
    tune = claim.tune.id
    lora, snapshot = f"loras/{tune}/1/{SHA}.safetensors", f"snapshots/{tune}/1/5-{SHA}.safetensors"
    await reports.record_snapshot(world.database, claim.lease, 1, Snapshot(snapshot, 5, SHA, 5))
    await reports.finish(world.database, claim.lease, 2, LoraResult(lora, SHA, 5, 10, 0.5, 1))
    await put(objects, lora, snapshot, f"loras/{tune}/1/{'b' * 64}.safetensors", f"incoming/{tune}/1/losses.jsonl")

    assert await left(world, objects) == {lora}
    assert (await tunes.find(world.database, world.tenant.id, tune)).output_lora_ids != []


async def test_failed_tune_keeps_its_last_snapshot(world: World, objects: LocalObjects) -> None:
    claim = await world.running()
    snapshot = f"snapshots/{claim.tune.id}/1/5-{SHA}.safetensors"
    await reports.record_snapshot(world.database, claim.lease, 1, Snapshot(snapshot, 5, SHA, 5))
    await reports.fail(world.database, claim.lease, 2, "NAN", "not a number", retryable=False, crashed=False)
    await put(objects, snapshot, f"incoming/{claim.tune.id}/1/lora.safetensors")

    assert await left(world, objects) == {snapshot}


async def test_what_is_unknown_is_left_alone(world: World, objects: LocalObjects) -> None:
    keys = {"readme", "incoming/assets/asset_x", "assets/asset_x/a", "loras/tune_x/1/a", "snapshots/tune_x/1/a"}
    await put(objects, *keys)

    assert await left(world, objects) == keys

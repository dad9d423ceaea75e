"""The sweeper deletes what nobody needs any more, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import sweeper
from gateway.results import Results
from gateway.sweeper import Sweeper
from store import assets, reports, tunes
from store.database import Database
from store.leases import Snapshot
from store.leftovers import leftovers
from store.objects.local import LocalObjects
from store.objects.signing import Signer
from store.reports import LoraResult, Outcome
from tests.store.world import World, make_world
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

SHA = "a" * 64


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path, Signer("http://gateway.example", b"a secret of tests"))


async def put(objects: LocalObjects, *keys: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"bytes"

    for key in keys:
        await objects.write(key, chunks())


async def left(
    world: World, objects: LocalObjects, leftover_seconds: float = 0.0, upload_seconds: float = 0.0
) -> set[str]:
    """What is there after a round."""
    round_ = Sweeper(world.database, objects, leftover_seconds=leftover_seconds, upload_seconds=upload_seconds)
    await round_.sweep()
    return {key async for key, _ in objects.list("")}


async def test_young_object_is_left_alone(world: World, objects: LocalObjects) -> None:
    await put(objects, f"incoming/assets/{(await world.file(ready=False)).id}")

    assert len(await left(world, objects, leftover_seconds=3600)) == 1


async def test_upload_that_was_never_completed_is_swept(world: World, objects: LocalObjects) -> None:
    waiting = await world.file(ready=False)
    await put(objects, f"incoming/assets/{waiting.id}", f"assets/{waiting.id}/unjudged-1")

    assert await left(world, objects) == set()


async def test_upload_that_may_still_be_completed_stays_though_leftovers_go(
    world: World, objects: LocalObjects
) -> None:
    waiting, judged = await world.file(ready=False), await world.file()
    mine = {f"incoming/assets/{waiting.id}", f"assets/{waiting.id}/unjudged-1"}
    await put(objects, *mine, f"incoming/assets/{judged.id}")

    assert await left(world, objects, upload_seconds=3600) == mine


async def test_judged_upload_that_is_not_committed_yet_stays_at_any_age(world: World, objects: LocalObjects) -> None:
    waiting = await world.file(ready=False)
    moved = f"assets/{waiting.id}/{SHA}"
    await put(objects, moved)

    assert await left(world, objects) == {moved}
    await assets.complete(world.database, world.tenant.id, waiting.id, size_bytes=5, sha256=SHA, object_key=moved)
    assert await left(world, objects) == {moved}


async def test_upload_that_takes_the_place_of_an_old_one_while_that_is_swept_stays(
    world: World, tmp_path: Path
) -> None:
    class Overtaken(LocalObjects):
        """A caller uploads once more between the look at the row and the deletion."""

        async def delete_if_older(self, key: str, modified_at: float) -> bool:
            await put(self, key)
            return await super().delete_if_older(key, modified_at)

    objects = Overtaken(tmp_path, Signer("http://gateway.example", b"a secret of tests"))
    upload = f"incoming/assets/{(await world.file(ready=False)).id}"
    await put(objects, upload)
    os.utime(tmp_path / "objects" / upload, (0, 0))

    assert await left(world, objects) == {upload}


async def test_ready_pictures_bytes_stay_also_when_it_is_deleted(world: World, objects: LocalObjects) -> None:
    ready, deleted = await world.file(), await world.file()
    await put(objects, f"assets/{ready.id}/{SHA}", f"assets/{deleted.id}/{SHA}", f"assets/{ready.id}/unjudged-1")
    await assets.delete(world.database, world.tenant.id, deleted.id)

    assert await left(world, objects) == {f"assets/{ready.id}/{SHA}", f"assets/{deleted.id}/{SHA}"}


async def test_rejected_pictures_bytes_are_swept(world: World, objects: LocalObjects) -> None:
    asset = await world.file(ready=False)
    await assets.reject(world.database, world.tenant.id, asset.id, "TRUNCATED", "cut off")
    await put(objects, f"assets/{asset.id}/unjudged-1", f"assets/{asset.id}/{SHA}", f"incoming/assets/{asset.id}")

    assert await left(world, objects, upload_seconds=3600) == set()


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


async def test_deleted_tunes_snapshot_is_swept_once_it_has_ended(world: World, objects: LocalObjects) -> None:
    snapshots, claims = [], [await world.running(), await world.running()]
    for claim in claims:
        snapshots.append(f"snapshots/{claim.tune.id}/1/5-{SHA}.safetensors")
        await reports.record_snapshot(world.database, claim.lease, 1, Snapshot(snapshots[-1], 5, SHA, 5))
    await put(objects, *snapshots)
    failed, running = claims
    await reports.fail(world.database, failed.lease, 2, "DIVERGED", "NaN.", retryable=False, crashed=False)
    before = await left(world, objects)

    for claim in claims:
        await tunes.delete(world.database, world.tenant.id, claim.tune.id)

    assert before == set(snapshots)
    assert await left(world, objects) == {snapshots[1]}, "its trainer has not seen yet that it is cancelled"
    await reports.observe_cancel(world.database, running.lease, 2, 5)
    assert await left(world, objects) == set()


async def test_superseded_snapshots_of_an_epoch_that_goes_on_are_swept_and_newer_ones_stay(
    world: World, objects: LocalObjects
) -> None:
    claim = await world.running()
    recorded = [50, 100, 200]
    oldest, before, newest, not_committed = (
        f"snapshots/{claim.tune.id}/1/{step}-{SHA}.safetensors" for step in (*recorded, 1000)
    )
    for report_seq, (key, step) in enumerate(zip((oldest, before, newest), recorded, strict=True), start=1):
        await reports.record_snapshot(world.database, claim.lease, report_seq, Snapshot(key, step, SHA, 5))
    await put(objects, oldest, before, newest, not_committed)

    assert await left(world, objects) == {before, newest, not_committed}


async def test_snapshot_that_a_tune_has_fallen_back_to_stays(world: World, objects: LocalObjects) -> None:
    claim = await world.running()
    before, newest = (f"snapshots/{claim.tune.id}/1/{step}-{SHA}.safetensors" for step in (100, 200))
    for report_seq, (key, step) in enumerate(((before, 100), (newest, 200)), start=1):
        await reports.record_snapshot(world.database, claim.lease, report_seq, Snapshot(key, step, SHA, 5))
    await put(objects, before, newest)

    refused = {"retryable": True, "crashed": False}
    await reports.fail(world.database, claim.lease, 3, "SNAPSHOT_REFUSED", "A byte is flipped.", **refused)
    again = await world.claim()

    assert again is not None
    assert again.snapshot is not None
    assert await left(world, objects) == {again.snapshot.object_key} == {before}


async def test_result_that_is_moved_and_not_committed_stays_until_it_is(world: World, objects: LocalObjects) -> None:
    claim = await world.running()
    lora = f"loras/{claim.tune.id}/1/{SHA}.safetensors"
    await put(objects, lora)

    assert await left(world, objects) == {lora}
    await reports.finish(world.database, claim.lease, 1, LoraResult(lora, SHA, 5, 10, 0.5, 1))
    assert await left(world, objects) == {lora}


async def test_result_that_is_committed_between_the_sweepers_two_looks_stays(world: World) -> None:
    claim = await world.running()
    lora = f"loras/{claim.tune.id}/1/{SHA}.safetensors"

    async def commit() -> None:
        await reports.finish(world.database, claim.lease, 1, LoraResult(lora, SHA, 5, 10, 0.5, 1))

    found = await leftovers(Interrupted(world.database, commit), {lora: 99.0}, 0.0)  # type: ignore[arg-type]

    assert found == []


async def test_result_that_is_swept_while_it_is_hashed_is_stale(world: World, tmp_path: Path) -> None:
    class Overtaken(LocalObjects):
        """The lease is lost, and the sweeper comes, when the object has its final key and no row names it."""

        async def hash(self, key: str) -> tuple[str, int]:
            await reports.give_back(world.database, claim.lease, 1, 0)
            assert await world.claim("trainer-2") is not None
            swept.append(await left(world, self))
            return await super().hash(key)

    swept: list[set[str]] = []
    objects = Overtaken(tmp_path, Signer("http://gateway.example", b"a secret of tests"))
    claim = await world.running()
    lease = pb.Lease(tune_id=claim.tune.id, epoch=1)
    lora = pb.UploadedObject(name="lora.safetensors", sha256=hashlib.sha256(b"bytes").hexdigest(), size_bytes=5)
    await put(objects, f"incoming/{claim.tune.id}/1/lora.safetensors")

    finished = pb.Finished(lease=lease, report_seq=2, lora=lora, step=10, final_loss=0.5, pictures=1)
    outcome = await Results(world.database, objects, 3).record(claim.lease, pb.TrainerMessage(finished=finished))

    assert swept == [set()]
    assert outcome is Outcome.STALE
    assert (await world.tune(claim.tune.id)).lease_epoch == 2


async def test_gateways_sweep_at_once(world: World, objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "BATCH", 3)
    claim = await world.running()
    await reports.give_back(world.database, claim.lease, 1, 0)
    second = await world.claim()
    assert second is not None
    mine = f"incoming/{claim.tune.id}/2/lora.safetensors"
    await put(objects, mine, *(f"incoming/{claim.tune.id}/1/samples/{number}-0.png" for number in range(20)))

    swept = await asyncio.gather(*(Sweeper(world.database, objects, leftover_seconds=0).sweep() for _ in range(3)))

    assert sum(swept) == 20, "each object is deleted by one of them"
    assert {key async for key, _ in objects.list("")} == {mine}


async def test_what_is_unknown_is_left_alone(world: World, objects: LocalObjects) -> None:
    keys = {"readme", "incoming/assets/asset_x", "assets/asset_x/a", "loras/tune_x/1/a", "snapshots/tune_x/1/a"}
    await put(objects, *keys)

    assert await left(world, objects) == keys


class Interrupted:
    """A database in which something else is committed after the first statement of each reading."""

    def __init__(self, database: Database, commit: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._commit = commit

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Interrupted]:
        async with self._database.read() as self._connection:
            self._committed = False
            yield self

    async def execute(self, *statement: Any) -> Any:
        rows = await self._connection.execute(*statement)
        if not self._committed:
            self._committed = True
            await self._commit()
        return rows

"""A tune's snapshots on their way from the engine to the gateway, and back to where a tune goes on."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from tests.trainer.supervisor.conftest import Bench, first_step, signed, welcomed
from tests.trainer.supervisor.fake_gateway import Stream
from trainer.supervisor.uploads import upload
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def test_a_snapshot_is_uploaded_before_it_is_reported_and_training_goes_on_meanwhile(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("snaps"))
    asked = await stream.hear("url_request")
    bench.go()
    progress = await stream.hear("progress")
    while progress.step < 3:
        progress = await stream.hear("progress")

    assert [(each.name, each.method) for each in asked.objects] == [("snapshots/1.safetensors", pb.METHOD_PUT)]
    assert bench.objects.objects.keys() == {"/pictures/asset_1"}


async def test_the_next_snapshot_follows_when_the_last_one_is_there(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("snaps"))

    ready = [await snapshot_of(bench, stream) for _ in range(2)]

    assert [each.step for each in ready] == [1, 2]
    for each in ready:
        body = bench.objects.objects[f"/incoming/tune_1/1/{each.object.name}"]
        assert body == f"tune_1 after {each.step}".encode()
        assert (each.object.sha256, each.object.size_bytes) == (hashlib.sha256(body).hexdigest(), len(body))
    assert ready[1].report_seq == ready[0].report_seq + 1
    assert not list((bench.folder / "data" / "work").rglob("snapshot-1*"))


async def test_a_trainer_that_leaves_gives_back_its_tune_behind_a_last_snapshot(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("leaves"))
    await first_step(stream)

    leaving = asyncio.create_task(bench.stop(supervisor))
    ready = await snapshot_of(bench, stream)
    returned = await stream.hear("lease_returned")
    await stream.acknowledge(ready)
    await stream.acknowledge(returned)
    await leaving

    assert (ready.step, returned.step) == (1, 1)
    assert returned.report_seq == ready.report_seq + 1


async def test_a_trainer_that_leaves_waits_no_longer_than_its_grace_time_for_the_upload(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench, grace=4.0)
    await stream.say(assign=bench.assign("leaves"))
    await first_step(stream)
    bench.objects.away = True

    leaving = asyncio.create_task(bench.stop(supervisor))
    await stream.say(urls=signed(bench, await stream.hear("url_request")))
    returned = await stream.hear("lease_returned")
    await stream.acknowledge(returned)
    await leaving

    assert returned.step == 1


async def test_a_cancelled_tune_ends_without_its_snapshot(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    assign = bench.assign("snaps")
    await stream.say(assign=assign)
    await stream.hear("url_request")  # which nobody answers

    await stream.say(cancel=pb.Cancel(lease=assign.lease))

    assert (await stream.hear("cancel_observed")).lease == assign.lease


async def test_a_tune_is_finished_without_the_snapshot_that_is_under_way(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("snaps"))
    await stream.hear("url_request")  # which nobody answers
    bench.go()

    request = await stream.hear("url_request")
    await stream.say(urls=signed(bench, request))

    assert [each.name for each in request.objects] == ["lora.safetensors"]
    assert await stream.hear("finished")


@pytest.mark.parametrize("harm", ["a flipped byte", "gone"])
async def test_a_damaged_snapshot_is_refused_so_that_the_one_before_it_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)
    _, stream = await welcomed(bench)
    assign = bench.assign()
    there = bench.objects.put("/snapshots/5", b"a snapshot")
    assign.snapshot.CopyFrom(pb.Snapshot(step=5, sha256=there.sha256, size_bytes=there.size_bytes, url=there.url))
    bench.objects.objects["/snapshots/5"] = b"A snapshot"
    if harm == "gone":
        del bench.objects.objects["/snapshots/5"]

    await stream.say(assign=assign)
    failed = await stream.hear("failed")

    assert (failed.reason, failed.retryable, failed.crashed) == ("SNAPSHOT_REFUSED", True, False)


async def test_an_object_store_that_stays_away_costs_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.PATIENCE", 0.0)
    _, stream = await welcomed(bench)
    bench.objects.away = True

    await stream.say(assign=bench.assign())
    event = await stream.hear("event")
    returned = await stream.hear("lease_returned")

    assert event.warning.reason == "STORE_AWAY"
    assert (returned.lease.tune_id, returned.step) == ("tune_1", 0)


async def snapshot_of(bench: Bench, stream: Stream) -> pb.SnapshotReady:
    """Lets the next snapshot be uploaded, and hears of it."""
    await stream.say(urls=signed(bench, await stream.hear("url_request")))
    ready: pb.SnapshotReady = await stream.hear("snapshot_ready")
    return ready


async def test_waiting_for_a_gateway_or_a_store_does_not_count_as_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    answers = [503, 200]
    monkeypatch.setattr("trainer.supervisor.uploads.Backoff.next", lambda self: 0.0)
    monkeypatch.setattr("trainer.supervisor.uploads.time.monotonic", lambda: clock)
    file = tmp_path / "snapshot"
    file.write_bytes(b"bytes")

    async def wait_long_for_a_url() -> str:
        nonlocal clock
        clock += 100
        return "http://store/snapshot"

    async def take(request: httpx.Request) -> httpx.Response:
        nonlocal clock
        await request.aread()
        clock += 2
        return httpx.Response(answers.pop(0))

    async with httpx.AsyncClient(transport=httpx.MockTransport(take)) as client:
        seconds = await upload(client, file, wait_long_for_a_url)

    assert seconds == 2

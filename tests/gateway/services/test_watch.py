"""WatchTune over gRPC: past and live events, each once, to the end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from gateway.watch import Watch
from store import events, leases, reports
from store.errors import DatabaseAway
from store.leases import LeaseRef
from tunesmith.v1 import tune_pb2, tune_service_pb2

ENGINE = "image/stable-diffusion-v1-5"


def request(id: str, **changes: Any) -> tune_service_pb2.WatchTuneRequest:
    return tune_service_pb2.WatchTuneRequest(id=id, **changes)


async def claimed(service: Any, tune_id: str) -> LeaseRef:
    claim = await leases.claim(service.database, leases.Offer("trainer-1", [ENGINE], 2**34, []), 60)
    assert claim is not None
    assert claim.lease.tune_id == tune_id
    assert await leases.accept(service.database, claim.lease)
    return claim.lease


async def test_watcher_gets_the_past_then_the_present_to_the_end(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune()
    call = tenant.tunes.WatchTune(request(created.id))
    first = await call.read()

    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))
    rest = [event async for event in call]

    assert (first.id, first.event.status_changed.status) == (1, tune_pb2.TUNE_STATUS_PENDING)
    assert [event.id for event in [first, *rest]] == list(range(1, len(rest) + 2))
    assert rest[-1].event.status_changed.status == tune_pb2.TUNE_STATUS_CANCELLED
    assert await call.code() == grpc.StatusCode.OK
    assert service.watch.watchers == 0


async def test_watcher_of_a_finished_tune_gets_its_log_and_the_end(tenant: Any) -> None:
    created = await tenant.create_tune()
    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))

    seen = [event.id async for event in tenant.tunes.WatchTune(request(created.id))]
    nothing = [event.id async for event in tenant.tunes.WatchTune(request(created.id, after_id=seen[-1]))]

    assert seen == list(range(1, len(seen) + 1))
    assert nothing == []


async def test_resumed_watch_misses_nothing_and_repeats_nothing(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune()
    lease = await claimed(service, created.id)
    first = tenant.tunes.WatchTune(request(created.id))
    seen = [(await first.read()).id, (await first.read()).id]
    first.cancel()

    for step in range(1, 6):
        await reports.record_progress(service.database, lease, "training", step, [metric(step)])
    resumed = tenant.tunes.WatchTune(request(created.id, after_id=seen[-1]))
    seen.append((await resumed.read()).id)
    await tenant.tunes.DeleteTune(tune_service_pb2.DeleteTuneRequest(id=created.id))
    seen += [event.id async for event in resumed]

    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 7


async def test_slow_watcher_holds_up_nobody(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune()
    lease = await claimed(service, created.id)
    slow = service.watch.follow(tenant.id, created.id)
    await anext(slow)  # and reads no more
    quick = tenant.tunes.WatchTune(request(created.id))

    for step in range(1, 301):
        await reports.record_progress(service.database, lease, "training", step, [metric(step)])
    seen: list[int] = []
    while not seen or seen[-1] < 300:
        seen.append((await quick.read()).id)

    assert seen == list(range(1, len(seen) + 1))
    assert [(await anext(slow)).seq for _ in range(300)] == list(range(2, 302))
    await slow.aclose()
    quick.cancel()


async def test_poll_finds_what_no_wake_up_told(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune()
    deaf = Watch(service.database, poll_seconds=0.01)  # its run() is not running
    following = deaf.follow(tenant.id, created.id)
    await anext(following)

    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))

    assert (await anext(following)).body["status"] == "cancelled"
    await following.aclose()


async def test_watch_outlives_an_absent_database(tenant: Any, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    created = await tenant.create_tune()
    watch = Watch(service.database, poll_seconds=0.01)
    following = watch.follow(tenant.id, created.id)
    await anext(following)
    asked, away = asyncio.Event(), True
    list_events = events.list_events

    async def absent(*arguments: Any) -> Any:
        asked.set()
        if away:
            raise DatabaseAway("gone")
        return await list_events(*arguments)

    monkeypatch.setattr(events, "list_events", absent)
    waiting = asyncio.ensure_future(anext(following))
    await asked.wait()
    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))
    away = False

    assert (await waiting).body["status"] == "cancelled"
    await following.aclose()


async def test_watch_of_a_tune_that_has_ended_waits_for_its_end_while_the_database_is_away(
    tenant: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await tenant.create_tune()
    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))
    list_events, asked = events.list_events, 0

    async def absent_once(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise DatabaseAway("gone")
        return await list_events(*arguments)

    monkeypatch.setattr(events, "list_events", absent_once)
    seen = [
        event.body["status"] async for event in Watch(service.database, poll_seconds=0.01).follow(tenant.id, created.id)
    ]

    assert seen == ["pending", "cancelled"]


async def test_gateway_that_goes_away_sends_its_watchers_elsewhere(tenant: Any, service: Any, ask: Any) -> None:
    created = await tenant.create_tune()
    call = tenant.tunes.WatchTune(request(created.id))
    await call.read()

    service.watch.close()

    told = await ask.refused(call.read())
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def metric(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 0.5, "learning_rate": 1e-4, "steps_per_second": 4.0}

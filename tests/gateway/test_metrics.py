"""The metrics: what a scrape gets, and that it is sound Prometheus text."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import urllib.request

import pytest

from gateway.config import Address
from gateway.metrics import ENGINES, Metrics, Snapshot
from store.tunes import QueueStats


def scraped(metrics: Metrics) -> str:
    server = metrics.serve(Address("127.0.0.1", 0))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            return str(answer.read(), "utf-8")
    finally:
        server.close()


def snapshot(queued: dict[str, int], oldest: dict[str, float] | None = None) -> Snapshot:
    states = {"queued": sum(queued.values()), "running": 1}
    return Snapshot(QueueStats(states, queued, oldest or {}), slots=3, free_slots=2)


async def counted(metrics: Metrics, snapshot: Snapshot) -> None:
    """Lets `follow` read one snapshot."""
    read = asyncio.Event()

    async def answer() -> Snapshot:
        if read.is_set():
            await asyncio.Event().wait()
        read.set()
        return snapshot

    follower = asyncio.create_task(metrics.follow(answer))
    await read.wait()
    await asyncio.sleep(0)
    follower.cancel()


async def test_invented_engines_share_one_series() -> None:
    metrics = Metrics("1.2.3")

    await counted(metrics, snapshot({f"image/{number:03}": 1 for number in range(ENGINES + 36)}))

    text = await asyncio.to_thread(scraped, metrics)
    assert text.count("tunesmith_queue_tunes{") == ENGINES + 1
    assert 'tunesmith_queue_tunes{engine="other"} 36.0' in text


async def test_scrape_tells_the_newest_snapshot_of_the_queue() -> None:
    metrics = Metrics("1.2.3")

    await counted(metrics, snapshot({"image/flux-dev": 3}, {"image/flux-dev": 12.5}))

    text = await asyncio.to_thread(scraped, metrics)
    assert 'tunesmith_tunes{state="queued"} 3.0' in text
    assert 'tunesmith_queue_tunes{engine="image/flux-dev"} 3.0' in text
    assert 'tunesmith_queue_oldest_age_seconds{engine="image/flux-dev"} 12.5' in text
    assert 'tunesmith_slots{state="free"} 2.0' in text
    assert 'tunesmith_slots{state="taken"} 1.0' in text
    assert 'tunesmith_build_info{version="1.2.3"} 1.0' in text


async def test_queue_that_has_emptied_is_told_as_zero() -> None:
    metrics = Metrics("1")
    await counted(metrics, snapshot({"image/flux-dev": 3}, {"image/flux-dev": 12.5}))

    await counted(metrics, snapshot({}))

    text = await asyncio.to_thread(scraped, metrics)
    assert 'tunesmith_queue_tunes{engine="image/flux-dev"} 0.0' in text
    assert 'tunesmith_queue_oldest_age_seconds{engine="image/flux-dev"} 0.0' in text


async def test_ended_tunes_are_counted_by_state_and_engine() -> None:
    metrics = Metrics("1")
    await counted(metrics, snapshot({"image/flux-dev": 1}))
    before = await asyncio.to_thread(scraped, metrics)

    metrics.ended("succeeded", "image/flux-dev")
    metrics.ended("succeeded", "image/flux-dev")
    metrics.ended("failed", "image/unseen")

    text = await asyncio.to_thread(scraped, metrics)
    assert 'tunesmith_tunes_ended_total{engine="image/flux-dev",state="succeeded"} 0.0' in before
    assert 'tunesmith_tunes_ended_total{engine="image/flux-dev",state="succeeded"} 2.0' in text
    assert 'tunesmith_tunes_ended_total{engine="image/flux-dev",state="cancelled"} 0.0' in text
    assert 'tunesmith_tunes_ended_total{engine="image/unseen",state="failed"} 1.0' in text


async def test_ended_tunes_of_invented_engines_share_one_series() -> None:
    metrics = Metrics("1")

    for number in range(ENGINES + 36):
        metrics.ended("cancelled", f"image/{number:03}")

    text = await asyncio.to_thread(scraped, metrics)
    assert text.count("tunesmith_tunes_ended_total{") == (ENGINES + 1) * 3
    assert 'tunesmith_tunes_ended_total{engine="other",state="cancelled"} 36.0' in text


async def test_database_that_fails_leaves_the_last_snapshot() -> None:
    metrics = Metrics("1")
    await counted(metrics, snapshot({}))
    tried = asyncio.Event()

    async def fail() -> Snapshot:
        tried.set()
        raise ConnectionError("gone")

    follower = asyncio.create_task(metrics.follow(fail))
    await tried.wait()
    await asyncio.sleep(0)

    assert not follower.done()
    follower.cancel()
    assert next(family.name for family in metrics.families()) == "tunesmith_tunes"


def test_calls_and_requests_are_timed() -> None:
    metrics = Metrics("1")

    metrics.rpc("/tunesmith.v1.TuneService/GetTune", "OK", 0.003)
    metrics.http("/v1/tune/{id}", "GET", 200, 0.004)
    metrics.judged("")

    text = scraped(metrics)
    method = 'code="OK",method="/tunesmith.v1.TuneService/GetTune"'
    assert f"tunesmith_rpc_duration_seconds_count{{{method}}} 1.0" in text
    assert 'tunesmith_pictures_judged_total{reason="ACCEPTED"} 1.0' in text
    assert 'route="/v1/tune/{id}",status="200"} 1.0' in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed here")
async def test_promtool_finds_no_fault() -> None:
    metrics = Metrics("1")
    metrics.rpc("/tunesmith.v1.TuneService/GetTune", "OK", 0.003)
    metrics.http("/v1/tunes", "GET", 200, 0.004)
    metrics.judged("TRUNCATED")
    metrics.ended("failed", "e")
    await counted(metrics, snapshot({"e": 1}, {"e": 0.5}))

    text = await asyncio.to_thread(scraped, metrics)
    command = ["promtool", "check", "metrics"]
    checked = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, text=True)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

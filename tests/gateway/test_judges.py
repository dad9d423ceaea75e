"""The pool of worker processes: what it answers when a worker dies or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from PIL import Image

from gateway import judges as pool
from gateway.judges import Judges
from gateway.pictures import Limits


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture"
    Image.new("RGB", (64, 64), "teal").save(path, "PNG")
    return path


@pytest.fixture
async def judges() -> AsyncIterator[Judges]:
    made = Judges(Limits(), workers=2, timeout=20)
    yield made
    await made.close()


async def test_many_pictures_at_a_time_are_each_judged(judges: Judges, picture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a picture")

    answers = await asyncio.gather(*(judges.judge(path) for path in [picture, text] * 10))

    assert [answer.reason for answer in answers] == ["", "NOT_A_PICTURE"] * 10


async def test_worker_killed_between_two_pictures_is_replaced(judges: Judges, picture: Path) -> None:
    await judges.judge(picture)
    worker = judges._slots.get_nowait()
    judges._slots.put_nowait(worker)
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)

    assert (await judges.judge(picture)).accepted


async def test_picture_that_no_worker_survives_is_refused_and_the_next_is_judged(
    judges: Judges, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = pool.exchange

    async def killed(worker: asyncio.subprocess.Process, path: Path) -> object:
        worker.kill()
        return await exchange(worker, path)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "exchange", killed)
        refused = await judges.judge(picture)

    assert (refused.accepted, refused.reason) == (False, "UNREADABLE")
    assert (await judges.judge(picture)).accepted


def test_worker_that_ended_before_it_was_asked_is_replaced_in_the_gateways_own_loop(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = pool.start
    stillborn = iter([True])

    async def started(limits: Limits) -> asyncio.subprocess.Process:
        worker = await start(limits)
        if next(stillborn, False):
            worker.kill()
            await worker.wait()
        return worker

    async def judged() -> bool:
        judges = Judges(Limits(), workers=1)
        answer = await judges.judge(picture)
        await judges.close()
        return answer.accepted

    monkeypatch.setattr(pool, "start", started)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(judged())


async def test_hanging_worker_is_ended_and_its_picture_refused(picture: Path, tmp_path: Path) -> None:
    judges = Judges(Limits(), workers=1, timeout=0.2)
    fifo = tmp_path / "fifo"  # opening it for reading hangs: nobody writes
    os.mkfifo(fifo)

    assert (await judges.judge(fifo)).reason == "UNREADABLE"

    await judges.close()


async def test_caller_that_goes_away_leaves_no_answer_behind_for_the_next(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = Judges(Limits(), workers=1)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    asked = asyncio.Event()
    exchange = pool.exchange

    async def noticed(worker: asyncio.subprocess.Process, path: Path) -> object:
        asked.set()
        return await exchange(worker, path)

    monkeypatch.setattr(pool, "exchange", noticed)
    gone = asyncio.create_task(judges.judge(fifo))
    await asked.wait()
    gone.cancel()

    assert (await judges.judge(picture)).accepted

    await judges.close()


async def test_worker_sees_nothing_of_the_gateways_environment(
    judges: Judges, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_SIGNING_SECRET", "hush")

    await judges.judge(picture)

    worker = judges._slots.get_nowait()
    judges._slots.put_nowait(worker)
    assert worker is not None
    environment = await asyncio.to_thread(Path(f"/proc/{worker.pid}/environ").read_bytes)
    assert b"TUNESMITH" not in environment


async def test_header_that_wants_all_memory_costs_only_its_own_verdict(
    judges: Judges, picture: Path, tmp_path: Path
) -> None:
    tiff = tmp_path / "tiff"  # a directory with one entry of 2^32 - 1 values
    entry = struct.pack("<HHII", 256, 4, 0xFFFFFFFF, 8)
    tiff.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4))

    assert not (await judges.judge(tiff)).accepted
    assert (await judges.judge(picture)).accepted

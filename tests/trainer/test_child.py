"""The engine process, over its pipe, as the supervisor runs it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.servers.processes import memory_bytes
from tests.trainer.tiny import DEVICE
from trainer import pipe
from trainer.pipe import (
    Broke,
    CheckpointSource,
    Judged,
    Memory,
    Message,
    PhaseChanged,
    PictureFile,
    Ready,
    Resident,
    Resolved,
    Saved,
    Start,
    Stepped,
    Stop,
    Stopped,
)

M = TypeVar("M")
COMMAND = [sys.executable, "-m", "trainer.engine", "--device", DEVICE.type, "--threads", "1"]


class Child:
    """Our end of the pipe."""

    def __init__(self) -> None:
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        self.process = subprocess.Popen(
            [*COMMAND, "--in", str(child_in), "--out", str(child_out)],
            pass_fds=(child_in, child_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(child_in)
        os.close(child_out)
        self._lines = os.fdopen(self._in, "rb")
        self.heard: list[Message] = []

    def send(self, message: Message) -> None:
        os.write(self._out, pipe.encode(message))

    def wait_for(self, *kinds: type[M]) -> M:
        """Reads up to a message of one of these kinds; everything read is in `heard`."""
        while line := self._lines.readline():
            message = pipe.decode(line)
            self.heard.append(message)
            if isinstance(message, kinds):
                return message
        raise EOFError(f"the child ended with {self.process.wait()}; heard {self.heard[-3:]}")

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    def hang_up(self) -> None:
        os.close(self._out)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._lines.close()


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    child.wait_for(Ready)
    yield child
    child.end()


@pytest.fixture
def start(tiny_base: Path, shapes: list[PictureFile], tmp_path: Path) -> Start:
    folder = tmp_path / "attempt"
    folder.mkdir()
    return Start(
        tune_id="tune_1", epoch=2, engine="image/stable-diffusion-v1-5", steps=6, trigger_word="zwx", pictures=shapes,
        checkpoint=CheckpointSource("folder", str(tiny_base), "tiny"), folder=str(folder), seed=1,
    )  # fmt: skip


def test_a_tune_is_told_from_judging_to_saving(child: Child, start: Start) -> None:
    child.heard.clear()

    child.send(start)
    saved = child.wait_for(Saved, Broke)

    assert isinstance(saved, Saved)
    assert Path(saved.path).stat().st_size == saved.size_bytes
    assert [told.phase for told in child.of(PhaseChanged)] == ["judging", "loading", "encoding", "training", "saving"]
    assert [told.accepted for told in child.of(Judged)] == [True] * 3
    assert [line.step for told in child.of(Stepped) for line in told.steps] == [1, 2, 3, 4, 5, 6]
    assert len(child.of(Resolved)) == 1
    assert all((told.tune_id, told.epoch) == ("tune_1", 2) for told in child.of(PhaseChanged))


def test_the_next_tune_finds_the_base_loaded(child: Child, start: Start, tmp_path: Path) -> None:
    child.send(start)
    child.wait_for(Saved)
    child.heard.clear()

    child.send(replace(start, tune_id="tune_2"))
    child.wait_for(Saved)

    assert child.of(Resident) == []


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU that is what torch has reserved of it")
def test_the_memory_of_the_whole_process_is_told_with_steps_and_at_the_end(child: Child, start: Start) -> None:
    child.heard.clear()

    child.send(replace(start, tune_id="tune_memory"))
    child.wait_for(Saved)
    last = child.wait_for(Memory)

    told_after = [after for before, after in pairwise(child.heard) if isinstance(before, Stepped | Saved)]
    assert len(told_after) >= 2
    assert all(isinstance(after, Memory) for after in told_after)
    assert abs(last.now_bytes - memory_bytes(child.process.pid)) < 32 << 20  # the kernel counts in batches
    assert last.now_bytes <= last.peak_bytes < 8 << 30
    assert [told.peak_bytes for told in child.of(Memory)] == sorted(told.peak_bytes for told in child.of(Memory))


def test_a_cancelled_tune_stops_within_a_step(child: Child, start: Start) -> None:
    child.send(replace(start, tune_id="tune_3", steps=100_000))
    child.heard.clear()
    child.wait_for(Stepped)

    child.send(Stop("tune_3", 2))
    stopped = child.wait_for(Stopped, Saved, Broke)

    assert isinstance(stopped, Stopped)
    assert 0 < stopped.step < 1000


def test_a_stop_of_another_attempt_stops_nothing(child: Child, start: Start) -> None:
    child.send(Stop("tune_4", 1))
    child.send(replace(start, tune_id="tune_4"))

    assert isinstance(child.wait_for(Saved, Stopped, Broke), Saved)


def test_a_tune_that_breaks_leaves_a_child_that_works(child: Child, start: Start) -> None:
    child.send(replace(start, hyperparameters={"rank": 0}))
    broke = child.wait_for(Broke, Saved)
    child.send(start)

    assert isinstance(broke, Broke)
    assert (broke.reason, broke.retryable) == ("INVALID_RECIPE", False)
    assert "rank is 0" in broke.details
    assert isinstance(child.wait_for(Saved, Broke), Saved)


def test_steps_are_told_at_most_five_times_a_second(child: Child, start: Start) -> None:
    child.heard.clear()
    began = time.monotonic()

    child.send(replace(start, tune_id="tune_5", steps=60))
    child.wait_for(Saved)
    took = time.monotonic() - began

    assert len(child.of(Stepped)) <= took * 5 + 1
    assert [line.step for told in child.of(Stepped) for line in told.steps] == list(range(1, 61))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "training"])
def test_the_child_ends_within_a_second_of_its_pipe(start: Start, busy: bool) -> None:
    child = Child()
    child.wait_for(Ready)
    if busy:
        child.send(replace(start, steps=100_000))
        child.wait_for(Stepped)

    child.hang_up()
    code = child.process.wait(timeout=5)

    assert code == 0
    child.end()


def test_the_child_dies_with_its_parent() -> None:
    # The parent keeps our ends of the pipe open in a sleeping grandchild, so that only the signal can tell the child.
    script = f"""
import os, subprocess, time
a, b = os.pipe(); c, d = os.pipe()
child = subprocess.Popen({COMMAND!r} + ["--in", str(a), "--out", str(d)], pass_fds=(a, d))
os.close(d)
os.read(c, 1)
holder = subprocess.Popen(["sleep", "60"], pass_fds=(b, c))
print(child.pid, holder.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    child, holder = (int(pid) for pid in parent.stdout.readline().split())
    watched = os.pidfd_open(child)
    try:
        parent.kill()
        ended, _, _ = select.select([watched], [], [], 5)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.close(watched)
        parent.communicate()

    assert ended == [watched]


def test_a_child_whose_parent_died_before_it_asked_for_the_signal_ends_at_once() -> None:
    script = """
import ctypes, os, time
from trainer.engine.__main__ import die_with_parent

class Late(ctypes.CDLL):
    def prctl(self, *arguments):
        while os.getppid() == parent:
            time.sleep(0.01)
        print("orphaned", flush=True)
        return self["prctl"](*arguments)

ctypes.CDLL = Late
parent = os.getpid()
read, write = os.pipe()
if os.fork():
    os.read(read, 1)
    os._exit(0)
seen = os.getppid
os.getppid = lambda: (seen(), os.write(write, b"."))[0]  # the parent leaves once the child knows it
die_with_parent()
print("lives on", flush=True)
"""

    # Returns when the orphan too has closed its standard output: when it has ended.
    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=60)

    assert ended.stdout == "orphaned\n"


def test_nothing_that_the_child_starts_holds_the_pipe(child: Child, start: Start) -> None:
    child.send(start)
    child.wait_for(Saved)

    ours = {Path(f"/proc/{child.process.pid}/fd/{fd}").readlink() for fd in _pipes(child.process.pid)}
    started = _children(child.process.pid)

    assert started
    for pid in started:
        assert not ours & {fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}


def _pipes(pid: int) -> list[Any]:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return [arguments[arguments.index(name) + 1] for name in ("--in", "--out")]


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

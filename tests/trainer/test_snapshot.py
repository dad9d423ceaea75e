"""Snapshots: a tune that goes on from one is to the byte the tune that was never disturbed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import Bench
from trainer.engine import snapshot
from trainer.engine.defaults import Value
from trainer.engine.loop import Pace
from trainer.engine.progress import Tally
from trainer.engine.snapshot import KEY, Keeper, Snapshot
from trainer.failures import Diverged, SnapshotRefused
from trainer.pipe import (
    PictureFile,
    Resolved,
    Saved,
    Snapshotted,
    SnapshotUploaded,
    Start,
    Stepped,
    Stop,
    Stopped,
    ToSupervisor,
    Warned,
)

STEPS = 12
RICH: dict[str, Value] = {
    "batch_size": 2,
    "lora_dropout": 0.3,
    "caption_dropout": 0.3,
    "random_flip": True,
    "prior_preservation_weight": 1.0,
}


@pytest.fixture(autouse=True)
def each_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.engine.progress.PERIOD", 0.0)


def told_to_leave(after: int) -> Callable[[ToSupervisor], Stop | None]:
    """What a supervisor says that leaves after a step."""

    def answer(told: ToSupervisor) -> Stop | None:
        leaves = isinstance(told, Stepped) and told.steps[-1].step >= after
        return Stop("tune_1", 1, snapshot=True) if leaves else None

    return answer


def uploaded(told: ToSupervisor) -> SnapshotUploaded | None:
    """What a supervisor says whose uploads take no time."""
    return SnapshotUploaded("tune_1", 1, 0.0) if isinstance(told, Snapshotted) else None


def left(bench: Bench, start: Start, after: int) -> tuple[Snapshotted, str]:
    """Leaves after a step; the snapshot, and the resolved recipe's JSON."""
    bench.answer = told_to_leave(after)
    stopped = bench.run(start)
    (taken,) = bench.heard(Snapshotted)
    (resolved,) = bench.heard(Resolved)
    assert stopped == Stopped("tune_1", 1, taken.step)
    bench.answer = lambda told: None
    return taken, resolved.json


def going_on(bench: Bench, pictures: list[PictureFile], taken: Snapshotted, recipe: str, **changes: Any) -> Start:
    return bench.start(pictures, snapshot=taken.path, resolved_recipe=json.loads(recipe), **changes)


@pytest.mark.parametrize("after", [1, 5, STEPS - 1])
@pytest.mark.parametrize("more", [{}, RICH], ids=["plain", "rich"])
def test_a_tune_that_goes_on_gives_the_file_of_the_undisturbed(
    bench: Bench, shapes: list[PictureFile], more: dict[str, Value], after: int
) -> None:
    undisturbed = bench.tune(shapes, steps=STEPS, **more)
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS, **more), after)
    torch.rand(100)  # nothing depends on the generator that everybody shares

    saved = bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))

    assert isinstance(saved, Saved)
    assert (saved.sha256, saved.final_loss) == (undisturbed.sha256, undisturbed.final_loss)
    assert [line.step for told in bench.heard(Stepped) for line in told.steps] == list(range(after + 1, STEPS + 1))
    assert taken.step == after


def test_a_tune_may_go_on_again_and_again(bench: Bench, shapes: list[PictureFile]) -> None:
    undisturbed = bench.tune(shapes, steps=STEPS)
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS), 3)
    for after in (4, 9):
        taken, _ = left(bench, going_on(bench, shapes, taken, recipe, steps=STEPS), after)

    saved = bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))

    assert isinstance(saved, Saved)
    assert saved.sha256 == undisturbed.sha256


def test_snapshots_are_taken_as_often_as_the_caller_said(bench: Bench, shapes: list[PictureFile]) -> None:
    undisturbed = bench.tune(shapes, steps=4)
    bench.answer = uploaded

    saved = bench.tune(shapes, steps=4, snapshot_every_seconds=1e-9)

    taken = bench.heard(Snapshotted)
    assert [told.step for told in taken] == [1, 2, 3]  # after the last step there is the LoRA
    for told in taken:
        body = Path(told.path).read_bytes()
        assert (hashlib.sha256(body).hexdigest(), len(body)) == (told.sha256, told.size_bytes)
    assert saved.sha256 == undisturbed.sha256


def test_no_second_snapshot_is_taken_while_the_first_waits_to_be_uploaded(
    bench: Bench, shapes: list[PictureFile]
) -> None:
    bench.tune(shapes, steps=6, snapshot_every_seconds=1e-9)

    assert [told.step for told in bench.heard(Snapshotted)] == [1]


def test_none_is_taken_where_the_caller_wants_none_but_when_the_trainer_leaves(
    bench: Bench, shapes: list[PictureFile]
) -> None:
    bench.tune(shapes, steps=3, snapshot_every_seconds=0)

    assert bench.heard(Snapshotted) == []
    assert left(bench, bench.start(shapes, steps=STEPS, snapshot_every_seconds=0), 2)[0].step == 2


def test_a_trainer_that_leaves_before_the_next_step_takes_no_second_one(
    bench: Bench, shapes: list[PictureFile]
) -> None:
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS), 2)
    start = going_on(bench, shapes, taken, recipe, steps=STEPS)
    bench.answer = lambda told: Stop("tune_1", 1, snapshot=True) if getattr(told, "phase", "") == "training" else None

    stopped = bench.run(start)

    assert stopped == Stopped("tune_1", 1, 2)
    assert bench.heard(Snapshotted) == []


def test_a_full_disk_costs_the_snapshot_and_not_the_tune(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    undisturbed = bench.tune(shapes, steps=4)
    monkeypatch.setattr("trainer.engine.snapshot.save_file", full)

    saved = bench.tune(shapes, steps=4, snapshot_every_seconds=1e-9)

    assert saved.sha256 == undisturbed.sha256
    warned = bench.heard(Warned)
    assert {told.reason for told in warned} == {"SNAPSHOT_FAILED"}
    assert "step 1 could not be written: [Errno 28]" in warned[0].details
    assert not list(Path(bench.folder).rglob("*snapshot*"))


def test_memory_that_ran_out_before_a_snapshot_is_remembered_behind_it(
    bench: Bench, shapes: list[PictureFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS, batch_size=2), 2)
    path = Path(taken.path)
    kept = snapshot.read(path, hashlib.sha256(recipe.encode()).hexdigest())
    snapshot.write(path, replace(kept, pace=Pace(1, True)))
    eased: list[bool] = []
    base = bench.shop.residence.base("image/stable-diffusion-v1-5", bench.start(shapes).checkpoint, "fp32")
    monkeypatch.setattr(base, "set_checkpointing", eased.append)

    bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))

    assert eased == [True, False]


def test_steps_thrown_away_before_a_snapshot_count_behind_it(bench: Bench, shapes: list[PictureFile]) -> None:
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS), 2)
    path = Path(taken.path)
    kept = snapshot.read(path, hashlib.sha256(recipe.encode()).hexdigest())
    snapshot.write(path, replace(kept, tally=Tally(in_a_row=10)))

    with pytest.raises(Diverged, match="10 steps in a row"):
        bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))


def flipped(path: Path) -> None:
    """One bit of the header's length, so that no reader can miss it; a bit elsewhere is what the SHA-256 is for."""
    body = bytearray(path.read_bytes())
    body[7] ^= 0x80
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_its_rest(path: Path) -> None:
    save_file(load_file(path), path)


def newer(path: Path) -> None:
    tensors, (rest,) = load_file(path), re.findall(rb'"tunesmith.snapshot":"((?:[^"\\]|\\.)*)"', path.read_bytes())
    save_file(tensors, path, {KEY: rest.decode().replace('\\"', '"').replace('"version": 1', '"version": 99')})


def of_another_size(path: Path) -> None:
    tensors, (rest,) = load_file(path), re.findall(rb'"tunesmith.snapshot":"((?:[^"\\]|\\.)*)"', path.read_bytes())
    save_file(
        {name: tensor[..., :-1] if tensor.ndim else tensor for name, tensor in tensors.items()},
        path,
        {KEY: rest.decode().replace('\\"', '"')},
    )


@pytest.mark.parametrize("harm", [flipped, cut, empty, without_its_rest, newer, of_another_size])
def test_a_snapshot_that_is_not_whole_is_refused(
    bench: Bench, shapes: list[PictureFile], harm: Callable[[Path], None]
) -> None:
    taken, recipe = left(bench, bench.start(shapes, steps=STEPS), 2)
    harm(Path(taken.path))

    with pytest.raises(SnapshotRefused):
        bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))


def test_another_recipes_snapshot_is_refused(bench: Bench, shapes: list[PictureFile]) -> None:
    taken, _ = left(bench, bench.start(shapes, steps=STEPS), 2)
    _, recipe = left(bench, bench.start(shapes, steps=STEPS, seed=8), 2)

    with pytest.raises(SnapshotRefused, match="another recipe's"):
        bench.run(going_on(bench, shapes, taken, recipe, steps=STEPS))


class Clock:
    """Says what the test wants."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(tmp_path: Path, clock: Clock) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path, 60.0, lambda *told: None, pytest.fail, now=clock)
    yield keeper
    keeper.settle()


def test_a_snapshot_is_due_when_the_time_has_passed_and_the_last_one_is_there(keeper: Keeper, clock: Clock) -> None:
    due = [keeper.is_due()]
    clock.now += 60
    due.append(keeper.is_due())
    keeper.keep(taken_after(5))
    clock.now += 60
    due.append(keeper.is_due())
    keeper.uploaded(0.5)
    due.append(keeper.is_due())

    assert due == [False, True, False, True]


def test_a_slow_upload_makes_snapshots_rarer(keeper: Keeper, clock: Clock) -> None:
    keeper.keep(taken_after(5))
    keeper.uploaded(10.0)

    clock.now += 199
    early = keeper.is_due()
    clock.now += 1

    assert (early, keeper.is_due()) == (False, True)


def taken_after(step: int) -> Snapshot:
    return Snapshot(step, "0" * 64, Pace(1, False), Tally(), {"lora": torch.zeros(3)})

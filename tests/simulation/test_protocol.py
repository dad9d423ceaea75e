"""Both ends of the protocol through faults by seed, in virtual time: witness.py holds what is promised.

One seed alone, with all that happened in it:   pytest tests/simulation -k "test_whatever_fails and [17]"
Others than these:                              TUNESMITH_SIMULATION_SEEDS=1000:5000 pytest tests/simulation
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import structlog

import gateway.progress
from store.reports import Outcome
from store.states import TuneState
from tests.simulation.witness import Broken
from tests.simulation.world import FAULTS, World
from tests.store import model
from trainer.supervisor.leases import Leases
from trainer.supervisor.progress import ProgressBuffer
from trainer.supervisor.protocol import TrainerEnd

FIRST, LAST = map(int, os.environ.get("TUNESMITH_SIMULATION_SEEDS", "0:150").split(":"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of gateways would say that a trainer leaves."""
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_whatever_fails_nothing_accepted_is_lost_and_no_two_publish_for_one_tune(seed: int) -> None:
    World(seed).run()


@pytest.mark.parametrize("seed", range(20))
def test_a_gateway_that_dies_or_goes_away_costs_no_step(seed: int) -> None:
    world = World(seed, ["kill_gateway", "close_gateway"])

    world.run()

    for tune in world.model.tunes.values():
        assert (tune.state, tune.attempts, tune.crashes) == (TuneState.SUCCEEDED, 1, 0), "\n".join(world.trace)


@pytest.mark.parametrize("seed", range(20))
def test_a_database_that_is_away_costs_nothing_but_time(seed: int) -> None:
    world = World(seed, ["database_away"])

    world.run()

    for tune in world.model.tunes.values():
        assert (tune.state, tune.attempts, tune.crashes) == (TuneState.SUCCEEDED, 1, 0), "\n".join(world.trace)


@pytest.mark.parametrize("seed", range(20))
def test_a_trainer_that_leaves_costs_no_attempt(seed: int) -> None:
    world = World(seed, ["leave"])

    world.run()

    for tune in world.model.tunes.values():
        assert (tune.state, tune.attempts, tune.crashes) == (TuneState.SUCCEEDED, 1, 0), "\n".join(world.trace)


@pytest.mark.parametrize("seed", range(20))
def test_a_trainer_that_is_drained_costs_no_attempt(seed: int) -> None:
    world = World(seed, ["drain", "cut_stream", "kill_gateway"])

    world.run()

    for tune in world.model.tunes.values():
        assert (tune.state, tune.attempts, tune.crashes) == (TuneState.SUCCEEDED, 1, 0), "\n".join(world.trace)


def test_one_seed_gives_one_run() -> None:
    first, second = World(3), World(3)

    first.run()
    second.run()

    assert first.trace == second.trace


def test_the_seeds_disturb_what_they_are_to_disturb() -> None:
    faults: Counter[str] = Counter()
    epochs: list[int] = []

    for seed in range(20):
        world = World(seed)
        world.run()
        faults.update(world.happened)
        epochs += [tune.epoch for tune in world.model.tunes.values()]

    assert faults.keys() == set(FAULTS)
    assert min(faults.values()) >= 10
    assert sum(epoch > 1 for epoch in epochs) >= 10  # tunes that somebody else went on with


def test_without_the_fence_a_late_report_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_holds", lambda lease, tune: tune.holder == lease.trainer_id)

    # These faults give a tune to the same trainer again, of which only the epoch tells.
    assert found_out(faults=["freeze_gateway", "crash_engine", "cut_stream"])


def test_a_trainer_that_trusts_its_leases_for_ever_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "is_trusted", lambda self, lease, now: lease in self)

    assert found_out()


def test_a_trainer_that_does_not_restate_what_it_holds_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = TrainerEnd._hello

    def incomplete(self: TrainerEnd, session_id: str) -> object:
        said = hello(self, session_id)
        said.ClearField("held")
        return said

    monkeypatch.setattr(TrainerEnd, "_hello", incomplete)

    assert found_out()


def test_a_drain_that_never_ends_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    heed = TrainerEnd._heed

    def once_and_for_all(self: TrainerEnd, *, drained: bool, why: str = "") -> object:
        return heed(self, drained=drained or self.is_drained, why=why)

    monkeypatch.setattr(TrainerEnd, "_heed", once_and_for_all)

    assert found_out()


def test_a_trainer_that_heeds_no_drain_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainerEnd, "_heed", lambda self, *, drained, why="": [])

    assert found_out()


def test_a_trainer_that_forgets_the_steps_that_it_has_told_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressBuffer, "tell_again", lambda self: None)

    assert found_out(faults=["kill_gateway", "database_away"])


def test_steps_called_stored_before_they_are_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    take = gateway.progress.ProgressBuffer.take

    def too_soon(self: gateway.progress.ProgressBuffer) -> gateway.progress.Chunk | None:
        if (chunk := take(self)) is not None:
            self.note_stored(chunk)
        return chunk

    monkeypatch.setattr(gateway.progress.ProgressBuffer, "take", too_soon)

    assert found_out()


def test_reports_out_of_order_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    publishable = TrainerEnd._publishable
    monkeypatch.setattr(TrainerEnd, "_publishable", lambda self, now: reversed(list(publishable(self, now))))

    assert found_out()


def test_reports_acknowledged_before_they_are_recorded_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Model, "record_snapshot", lambda *_: Outcome.ALREADY_RECORDED)

    assert found_out()


def found_out(seeds: int = 100, faults: Sequence[str] = FAULTS) -> bool:
    """Whether any run breaks a promise."""
    for seed in range(seeds):
        try:
            World(seed, faults).run()
        except Broken:
            return True
    return False

"""Which passes are recorded and when; what a recording computes, test_gpu.py holds against the passes themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainer.engine import graphs
from trainer.engine.graphs import MOST, WARM_UP, Recorder
from trainer.engine.lessons import Lesson


class FakeGraph:
    """Does as a recording does: answers from the memory of the lesson that it was made of."""

    fault: Exception | None = None

    def __init__(self, run: graphs.Pass, lesson: Lesson, pool: object) -> None:
        if self.fault is not None:
            raise self.fault

    def play(self, lesson: Lesson) -> Tensor:
        return -lesson.x_0.sum()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(graphs, "_Graph", FakeGraph)
    yield Recorder()
    FakeGraph.fault = None


def lesson(width: int = 4, words: int = 3) -> Lesson:
    x = torch.ones(1, 1, 1, width)
    return Lesson(x, x, torch.zeros(1, dtype=torch.int64), {"states": torch.ones(1, words)}, [], 0)


def run(given: Lesson) -> Tensor:
    return given.x_0.sum()


def answers(play: graphs.Pass, *lessons: Lesson) -> list[float]:
    return [play(given).item() for given in lessons]


def test_a_pass_is_played_back_once_its_sizes_have_come_up_often_enough(recorder: Recorder) -> None:
    play = recorder.played_back(run)

    assert answers(play, *[lesson(4)] * (WARM_UP + 2)) == [4.0] * WARM_UP + [-4.0, -4.0]
    assert answers(play, *[lesson(6)] * (WARM_UP + 1)) == [6.0] * WARM_UP + [-6.0]
    assert answers(play, lesson(4, words=5), lesson(4)) == [4.0, -4.0]  # every tensor counts, and none is forgotten


def test_two_kinds_of_passes_over_equal_sizes_have_a_recording_each(recorder: Recorder) -> None:
    learn, hold = recorder.played_back(run), recorder.played_back(run)
    answers(learn, *[lesson()] * (WARM_UP + 1))

    assert answers(hold, lesson()) == [4.0]


def test_no_more_are_recorded_than_the_device_has_room_for(recorder: Recorder) -> None:
    play = recorder.played_back(run)
    for width in range(1, MOST + 1):
        answers(play, *[lesson(width)] * (WARM_UP + 1))

    assert answers(play, *[lesson(MOST + 1)] * (WARM_UP + 1)) == [MOST + 1.0] * (WARM_UP + 1)
    assert answers(play, lesson(MOST)) == [-float(MOST)]


def test_a_pass_that_cannot_be_recorded_is_made_as_it_comes(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    FakeGraph.fault = RuntimeError("operation not permitted when stream is capturing")
    play = recorder.played_back(run)

    assert answers(play, *[lesson()] * (WARM_UP + 3)) == [4.0] * (WARM_UP + 3)
    assert [record.getMessage().split(" action=")[0] for record in caplog.records] == ["Passes are not recorded."]


def test_memory_that_runs_out_while_recording_is_the_callers_to_know(recorder: Recorder) -> None:
    FakeGraph.fault = torch.OutOfMemoryError("CUDA out of memory")
    play = recorder.played_back(run)
    answers(play, *[lesson()] * WARM_UP)

    with pytest.raises(torch.OutOfMemoryError):
        play(lesson())

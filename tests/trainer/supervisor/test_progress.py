"""The newest progress wins, and a step is told once."""

from itertools import pairwise

from trainer import pipe
from trainer.supervisor.progress import LIMIT, ProgressBuffer
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2


def steps(*numbers: int) -> list[pipe.StepLine]:
    return [pipe.StepLine(number, 0.5, 1e-4, 10.0, 0.1) for number in numbers]


def test_nothing_new_is_nothing_due() -> None:
    assert ProgressBuffer(pb.Lease(), 10).take() is None


def test_a_step_is_told_once() -> None:
    buffer = ProgressBuffer(pb.Lease(tune_id="tune_1", epoch=1), 10)
    buffer.note_phase(tune_pb2.TUNE_PHASE_TRAINING)
    buffer.note_steps(steps(1, 2))

    first = buffer.take()
    buffer.note_steps(steps(3))
    second = buffer.take()

    assert first is not None
    assert second is not None
    assert (first.phase, first.step, first.steps) == (tune_pb2.TUNE_PHASE_TRAINING, 2, 10)
    assert [[metrics.step for metrics in each.metrics] for each in (first, second)] == [[1, 2], [3]]
    assert buffer.take() is None


def told(progress: pb.Progress | None) -> list[int]:
    assert progress is not None
    return [metrics.step for metrics in progress.metrics]


def test_a_new_stream_is_told_again_what_the_old_one_has_not_called_stored() -> None:
    buffer = ProgressBuffer(pb.Lease(), 10)
    buffer.note_steps(steps(1, 2, 3))
    first = buffer.take()
    buffer.note_steps(steps(4))
    buffer.take()
    buffer.stored(2)
    buffer.note_steps(steps(5))

    buffer.tell_again()
    second = buffer.take()
    buffer.stored(5)
    buffer.tell_again()
    third = buffer.take()

    assert told(first) == [1, 2, 3]
    assert told(second) == [3, 4, 5]
    assert told(third) == []
    assert buffer.take() is None


def test_a_new_stream_is_told_the_phase_again() -> None:
    buffer = ProgressBuffer(pb.Lease(), 10)
    fresh = ProgressBuffer(pb.Lease(), 10)
    buffer.note_phase(tune_pb2.TUNE_PHASE_ENCODING)
    buffer.take()

    buffer.tell_again()
    fresh.tell_again()
    again = buffer.take()

    assert again is not None
    assert again.phase == tune_pb2.TUNE_PHASE_ENCODING
    assert fresh.take() is None


def test_what_no_gateway_ever_calls_stored_is_kept_only_coarsely() -> None:
    buffer = ProgressBuffer(pb.Lease(), 100_000)
    for step in range(1, 3 * LIMIT):
        buffer.note_steps(steps(step))
        buffer.take()

    buffer.tell_again()
    again = told(buffer.take())

    assert LIMIT / 4 <= len(again) <= LIMIT
    assert again[-1] == 3 * LIMIT - 1
    assert max(later - step for step, later in pairwise([0, *again])) <= 8


def test_an_hour_without_a_gateway_thins_the_curve_and_keeps_the_newest() -> None:
    buffer = ProgressBuffer(pb.Lease(), 100_000)

    for step in range(1, 5 * LIMIT + 2):
        buffer.note_steps(steps(step))
    progress = buffer.take()

    assert progress is not None
    told = [metrics.step for metrics in progress.metrics]
    assert len(told) <= LIMIT
    assert told == sorted(set(told))
    assert told[-1] == 5 * LIMIT + 1
    assert max(later - step for step, later in pairwise([0, *told])) <= 16  # every eighth would just not fit

"""The newest progress wins, and a step is told once."""

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


def test_an_hour_without_a_gateway_thins_the_curve_and_keeps_the_newest() -> None:
    buffer = ProgressBuffer(pb.Lease(), 100_000)

    for step in range(1, 5 * LIMIT + 2):
        buffer.note_steps(steps(step))
    progress = buffer.take()

    assert progress is not None
    told = [metrics.step for metrics in progress.metrics]
    assert len(told) <= LIMIT
    assert told == sorted(told)
    assert told[-1] == 5 * LIMIT + 1
    assert told[0] < LIMIT

"""Small translations between the stream and the engine's pipe."""

from trainer.supervisor.attempt import hyperparameters, phase_of, said
from tunesmith.v1 import tune_pb2


def test_hyperparameters_are_those_that_were_set() -> None:
    message = tune_pb2.Hyperparameters(
        rank=8,
        noise_offset=0.0,
        random_flip=False,
        schedule=tune_pb2.LEARNING_RATE_SCHEDULE_CONSTANT,
        precision=tune_pb2.PRECISION_BF16,
    )

    assert hyperparameters(message) == {
        "rank": 8,
        "noise_offset": 0.0,
        "random_flip": False,
        "schedule": "constant",
        "precision": "bf16",
    }
    assert hyperparameters(tune_pb2.Hyperparameters()) == {}


def test_a_phase_that_is_not_known_is_unspecified() -> None:
    assert phase_of("encoding") == tune_pb2.TUNE_PHASE_ENCODING
    assert phase_of("dreaming") == tune_pb2.TUNE_PHASE_UNSPECIFIED


def test_details_are_cut_and_have_no_nul() -> None:
    assert said("a\x00b" * 10, 5) == "ababa"

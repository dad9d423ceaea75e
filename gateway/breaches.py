"""Why a trainer is cut off: rules that a message breaks, and newer streams. Called by session and servicer; pure."""

from __future__ import annotations

import math

import grpc

from gateway import rules, status
from gateway.status import Refusal
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


def check(message: pb.TrainerMessage) -> None:
    """Judges a message by the rules beside its fields, and by the one that cannot be said there.

    Raises:
        Refusal: It breaks one: the trainer's build is at fault.
    """
    if broken := rules.violations(message):
        raise status.invalid(broken)
    numbers = [message.finished.final_loss] if message.HasField("finished") else []
    for metrics in message.progress.metrics:
        numbers += [metrics.loss, metrics.learning_rate, metrics.steps_per_second]
    if not all(map(math.isfinite, numbers)):
        raise breach("a number is not finite")


def breach(text: str) -> Refusal:
    """The trainer does not keep to the protocol."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_BREACH", text)


def evicted(*, same_process: bool) -> Refusal:
    """The trainer has said Hello again."""
    if same_process:
        text = "A newer stream of this trainer process has taken over."
        return Refusal(grpc.StatusCode.ABORTED, "SESSION_REPLACED", text)
    text = "Another process has said Hello with this trainer_id."
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_TRAINER", text)


def going_away() -> Refusal:
    """This gateway ends."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, "GOING_AWAY", "This gateway goes away; call another one.")

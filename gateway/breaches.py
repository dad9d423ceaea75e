"""Why a trainer is cut off: rules that a message breaks, reports that cannot be true of their tune, newer streams.
Called by servicer, session, progress and results; knows no stream and no store."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from gateway import rules, status
from gateway.status import Refusal
from store.tables import Tune
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

NESTED = 20  # levels of a recipe; callers get it as a Struct, whose readers stop at a hundred


async def legible(reading: Awaitable[Any]) -> Any:  # noqa: ANN401  # grpc has no type for its EOF
    """What is read.

    Raises:
        Refusal: Bytes that are no message: the trainer's build is at fault.
    """
    try:
        return await reading
    except DecodeError as exc:
        raise breach("a message cannot be read") from exc


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


def contradiction(message: pb.TrainerMessage, tune: Tune) -> str | None:
    """What a report says that cannot be so of its tune; None where it can. `tune`: its row, in the report's epoch."""
    match message.WhichOneof("message"):
        case "event":
            return _contradiction_of_event(message.event, tune)
        case "snapshot_ready":
            step, own = message.snapshot_ready.step, f"snapshots/{tune.id}/{tune.lease_epoch}/"
            if (tune.snapshot_key or "").startswith(own) and step <= (tune.snapshot_step or 0):
                return f"a snapshot of step {step} after one of step {tune.snapshot_step}"
            return _beyond(step, tune)
        case "finished":
            finished = message.finished
            if finished.step != tune.steps:
                return f"it has finished with step {finished.step} of {tune.steps}"
            if finished.pictures > len(tune.files):
                return f"{finished.pictures} pictures of {len(tune.files)} were trained on"
        case "cancel_observed":
            return _beyond(message.cancel_observed.step, tune)
        case "lease_returned":
            return _beyond(message.lease_returned.step, tune)
    return None


def _contradiction_of_event(event: pb.Event, tune: Tune) -> str | None:
    match event.WhichOneof("event"):
        case "verdict" if event.verdict.file_id not in dict(tune.files):
            return f"{event.verdict.file_id!r} is none of its files"
        case "resolved_recipe" if not is_storable_object(event.resolved_recipe.json):
            return "its resolved recipe is no JSON object that can be kept"
        case "sample":
            return _beyond(event.sample.step, tune)
    return None


def _beyond(step: int, tune: Tune) -> str | None:
    return f"step {step} of {tune.steps}" if step > tune.steps else None


def is_storable_object(text: str) -> bool:
    """Whether it is a JSON object that both databases keep, and that callers can be told."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _is_storable(value, NESTED)


def _is_storable(value: Any, levels: int) -> bool:  # noqa: ANN401  # any JSON value
    match value:
        case dict() | list():
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return levels > 0 and all(_is_storable(part, levels - 1) for part in parts)
        case str():  # an escape may spell what a proto's text cannot hold
            return "\x00" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
        case int() | float():
            return abs(value) < 1e300  # false for NaN too
    return value is None


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

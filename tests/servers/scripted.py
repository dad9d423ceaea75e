"""A trainer at a real gateway that does what the test says and trains nothing. Used where a tune's way is what matters;
synchronous, for its callers may hold an event loop already.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import grpc
import httpx

from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from tunesmith.v1 import tune_pb2

ENGINE = "image/stable-diffusion-v1-5"
NAME = "trainer-1"
LIMIT = 20.0  # seconds that an answer of the gateway may take
SPEED = 4.0  # steps per second, as it says

_sessions = itertools.count(1)


class Attempt:
    """One attempt, as the trainer has it."""

    def __init__(self, trainer: ScriptedTrainer, assign: pb.Assign) -> None:
        self.assign = assign
        self.lease = assign.lease
        self.trainer = trainer
        self._reports = 0

    def tell(self, phase: str, losses: Sequence[float] = (), *, first: int = 1) -> None:
        """The phase, and some steps with these losses."""
        last = first + len(losses) - 1
        steps = self.assign.request.steps
        metrics = [
            pb.StepMetrics(step=step, loss=loss, learning_rate=1e-4 * (1 - step / (steps + 1)), steps_per_second=SPEED)
            for step, loss in enumerate(losses, first)
        ]
        number = tune_pb2.TunePhase.Value(f"TUNE_PHASE_{phase.upper()}")
        said = pb.Progress(lease=self.lease, phase=number, step=last, steps=steps, metrics=metrics)
        self.trainer.say(progress=said)

    def log(self, **arm: Any) -> None:
        """An entry of the tune's log: one arm of Event."""
        self._report(lambda seq: {"event": pb.Event(lease=self.lease, report_seq=seq, **arm)})

    def resolve(self, recipe: dict[str, Any]) -> None:
        """What the request had left open is fixed."""
        text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
        self.log(resolved_recipe=pb.ResolvedRecipe(json=text, sha256=hashlib.sha256(text.encode()).hexdigest()))

    def finish(self, lora: bytes) -> None:
        """Uploads the LoRA and says so."""
        name = "lora.safetensors"
        wanted = [pb.ObjectName(method=pb.METHOD_PUT, name=name)]
        self.trainer.say(url_request=pb.UrlRequest(request_id=1, lease=self.lease, objects=wanted))
        put = httpx.put(self.trainer.hear("urls").urls[0].url, content=lora)
        assert put.is_success, put.text
        stored = pb.UploadedObject(name=name, sha256=hashlib.sha256(lora).hexdigest(), size_bytes=len(lora))
        steps = self.assign.request.steps
        pictures = len(self.assign.pictures)
        self._report(
            lambda seq: {
                "finished": pb.Finished(
                    lease=self.lease, report_seq=seq, lora=stored, step=steps, final_loss=0.1, pictures=pictures
                )
            }
        )

    def fail(self, reason: str, details: str, *, retryable: bool = False) -> None:
        """It broke."""
        self._report(
            lambda seq: {
                "failed": pb.Failed(
                    lease=self.lease, report_seq=seq, reason=reason, details=details, retryable=retryable
                )
            }
        )

    def stop(self) -> None:
        """Hears of its cancel, and has stopped."""
        self.trainer.hear("cancel")
        self._report(lambda seq: {"cancel_observed": pb.CancelObserved(lease=self.lease, report_seq=seq)})

    def go_on(self, address: str) -> None:
        """The gateway was away, and is there now: says Hello anew, with this attempt in hand."""
        self.trainer.leave()
        self.trainer.connect(address, held=[pb.HeldAttempt(lease=self.lease)])
        [verdict] = self.trainer.hear("welcome").held
        assert verdict.action == pb.HELD_ACTION_CONTINUE

    def _report(self, arm: Callable[[int], dict[str, Any]]) -> None:
        self._reports += 1
        self.trainer.say(**arm(self._reports))
        ack = self.trainer.hear("report_ack")
        assert ack.outcome == pb.REPORT_OUTCOME_RECORDED, ack


class ScriptedTrainer:
    """One connection of NAME. With it: one slot, for whatever tune there is.

    Args:
        address: HOST:PORT of the gateway's gRPC side.
        token: NAME's.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token

    def __enter__(self) -> Self:
        self.connect(self._address)
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def connect(self, address: str, held: Sequence[pb.HeldAttempt] = ()) -> None:
        """Says Hello."""
        self._channel = grpc.insecure_channel(address)
        stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(self._channel)
        self._said: queue.SimpleQueue[pb.TrainerMessage | None] = queue.SimpleQueue()
        metadata = (("authorization", f"Bearer {self._token}"),)
        self._heard: Iterator[pb.GatewayMessage] = stub.Connect(
            iter(self._said.get, None), metadata=metadata, timeout=10 * LIMIT
        )
        hello = pb.Hello(
            trainer_id=NAME,
            boot_id="boot-1",
            session_id=f"{next(_sessions):08d}-scripted",
            engines=[ENGINE],
            slots=1,
            device_name="none",
            device_memory_bytes=2**36,
            held=held,
        )
        self.say(hello=hello)

    def take(self) -> Attempt:
        """Accepts the next tune."""
        assign = self.hear("assign")
        self.say(accepted=pb.Accepted(lease=assign.lease))
        return Attempt(self, assign)

    def leave(self) -> None:
        """Hangs up."""
        self._said.put(None)
        self._channel.close()

    def say(self, **arm: Any) -> None:
        """One arm of TrainerMessage."""
        self._said.put(pb.TrainerMessage(**arm))

    def hear(self, arm: str) -> Any:
        """The next message of that arm; what comes before it is skipped."""
        for message in self._heard:
            if message.WhichOneof("message") == arm:
                return getattr(message, arm)
        raise AssertionError(f"the gateway ended the stream before {arm}")

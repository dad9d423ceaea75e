"""A trainer that only beats: how long each HeartbeatAck takes, with a lease in hand. A stream and no more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from store import keys
from store.database import Database
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

ENGINE = "image/stable-diffusion-v1-5"
NAME = "trainer-that-beats"


@dataclass
class Beats:
    """What was measured."""

    milliseconds: list[float] = field(default_factory=list)
    """From the sending of each beat to its ack."""
    lost: int = 0
    """Acks that did not extend the lease."""


class BeatingTrainer:
    """Connects, takes one tune, and beats.

    Args:
        channel: To the gateway.
        token: Of the trainer NAME.
        period: Seconds between two beats.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str, period: float) -> None:
        stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        self._call = stub.Connect(metadata=(("authorization", f"Bearer {token}"),))
        self._period = period
        self.beats = Beats()

    async def take(self) -> None:
        """Says Hello, and waits for a tune."""
        hello = pb.Hello(
            trainer_id=NAME, boot_id="b", session_id="s", engines=[ENGINE], slots=1, device_memory_bytes=2**36
        )
        await self._say(hello=hello)
        assign: pb.Assign = await self._hear("assign")
        self._lease = assign.lease
        await self._say(accepted=pb.Accepted(lease=self._lease))

    async def beat(self, until: asyncio.Event) -> None:
        """Beats, one ack after the other."""
        number = 0
        while not until.is_set():
            number += 1
            started = time.perf_counter()
            await self._say(heartbeat=pb.Heartbeat(seq=number, held=[pb.HeldAttempt(lease=self._lease)]))
            ack = await self._hear("heartbeat_ack")
            self.beats.milliseconds.append(1000 * (time.perf_counter() - started))
            self.beats.lost += self._lease not in ack.extended
            try:
                async with asyncio.timeout(self._period):
                    await until.wait()
            except TimeoutError:
                continue

    def leave(self) -> None:
        """Breaks off: the lease ends by itself."""
        self._call.cancel()

    async def _say(self, **arm: Any) -> None:  # noqa: ANN401 - one arm of TrainerMessage, by its name
        await self._call.write(pb.TrainerMessage(**arm))

    async def _hear(self, arm: str) -> Any:  # noqa: ANN401 - that arm's message
        while True:
            message: Any = await self._call.read()
            if message is grpc.aio.EOF:
                raise RuntimeError("the gateway has ended the stream")
            if message.WhichOneof("message") == arm:
                return getattr(message, arm)


async def token_of(database_url: str) -> str:
    """Makes a join token for it."""
    database = await Database.open(database_url, wakeups=False)
    try:
        return await keys.create_trainer_token(database, NAME)
    finally:
        await database.close()

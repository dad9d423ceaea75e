"""Asks the store about those messages of one trainer that it must see in their order: answers, URL requests, reports.
What is asked, and what follows from the answer, is decided in protocol.py.

Called by its session, which must not wait: a beat is answered while a LoRA is hashed, and while the database is away.
What is not acknowledged the trainer keeps and sends again, so whatever waits here may be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import grpc
import structlog

from gateway import assignments
from gateway.desk import Desk
from gateway.progress import Chunks
from gateway.protocol import Accept, Answer, Effect, GatewayEnd, Record, Renew, Request, Sign, Withdraw
from gateway.status import Refusal
from store import leases
from store.errors import DatabaseAway, ObjectsAway
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)
T = TypeVar("T")

BACKLOG = 2048  # messages; a trainer has at most 64 reports of an attempt under way
BACKLOG_BYTES = 32 * 2**20  # of them all: a single message may have 4 MiB
RETRY = 1.0  # seconds until the database or the object store is asked again


class Recorder:
    """One trainer's backlog, worked off in order."""

    def __init__(
        self, end: GatewayEnd, desk: Desk, chunks: Chunks, perform: Callable[[Sequence[Effect]], Awaitable[None]]
    ) -> None:
        """perform: does what follows from an answer."""
        self._end = end
        self._desk = desk
        self._chunks = chunks
        self._perform = perform
        self._backlog: asyncio.Queue[pb.TrainerMessage] = asyncio.Queue(BACKLOG)
        self._backlog_bytes = 0

    def put(self, message: pb.TrainerMessage) -> None:
        """Takes a message.

        Raises:
            Refusal: The trainer sends more than it may have under way.
        """
        if self._backlog.full() or self._backlog_bytes > BACKLOG_BYTES:
            text = f"{self._backlog.qsize()} messages wait to be recorded"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REPORTS", text)
        self._backlog.put_nowait(message)
        self._backlog_bytes += message.ByteSize()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            message = await self._backlog.get()
            self._backlog_bytes -= message.ByteSize()
            await until_it_works(partial(self._act, message))

    async def _act(self, message: pb.TrainerMessage) -> None:
        request = self._end.request(message)
        await self._perform(self._end.answered(request, await self._answer(request), time.monotonic()))

    async def _answer(self, request: Request) -> Answer:
        """What the store says."""
        desk = self._desk
        match request:
            case Accept(lease):
                accepted = await leases.accept(desk.database, lease)
                if accepted:
                    desk.metrics.assignment("accepted")
                return accepted
            case Withdraw(lease, reason, details):
                log.warning(f"A trainer rejects a tune: {reason}", action="assignment_rejected", tune_id=lease.tune_id)
                withdrawn = await leases.withdraw(desk.database, lease, reason, details)
                desk.metrics.assignment("rejected")
                return withdrawn
            case Sign(lease, wanted):
                tune = await leases.is_current(desk.database, lease)
                return await assignments.sign(desk.database, desk.objects, tune, wanted) if tune is not None else None
            case Record(lease, message):
                if request.follows_progress:
                    await self._chunks.flush(lease)
                outcome = await desk.results.record(lease, message)
                desk.metrics.report(request.arm, outcome)
                return outcome
            case Renew():
                raise AssertionError("a beat waits for nothing")


async def until_it_works(work: Callable[[], Awaitable[T]]) -> T:
    """Tries again while the database or the object store is away."""
    while True:
        try:
            return await work()
        except (DatabaseAway, ObjectsAway) as exc:
            log.warning(f"Not recorded yet: {exc}", action="record_retried")
            await asyncio.sleep(RETRY)

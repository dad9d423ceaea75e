"""Acts on those messages of one trainer that the database must see in their order: answers, URL requests, reports.

Called by its session, which must not wait: a beat is answered while a LoRA is hashed, and while the database is away.
What is not acknowledged the trainer keeps and sends again, so whatever waits here may be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import grpc
import structlog

from gateway import assignments
from gateway.desk import Desk
from gateway.holdings import Holdings
from gateway.results import REPORTS, TERMINAL
from gateway.status import Refusal
from store import leases
from store.errors import DatabaseAway
from store.leases import LeaseRef
from store.reports import Outcome
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)
T = TypeVar("T")

BACKLOG = 2048  # messages; a trainer has at most 64 reports of an attempt under way
RETRY = 1.0  # seconds until the database or the object store is asked again

OUTCOMES = {
    Outcome.RECORDED: pb.REPORT_OUTCOME_RECORDED,
    Outcome.ALREADY_RECORDED: pb.REPORT_OUTCOME_ALREADY_RECORDED,
    Outcome.STALE: pb.REPORT_OUTCOME_STALE,
}


class Stream(Protocol):
    """What a recorder needs of its session."""

    async def send(self, message: pb.GatewayMessage) -> None:
        """Queues a message to the trainer."""

    def refrain(self) -> None:
        """Offers the trainer nothing for a while."""


class Recorder:
    """One trainer's backlog, worked off in order."""

    def __init__(self, trainer_id: str, desk: Desk, holdings: Holdings, stream: Stream) -> None:
        self._trainer_id = trainer_id
        self._desk = desk
        self._holdings = holdings
        self._stream = stream
        self._backlog: asyncio.Queue[pb.TrainerMessage] = asyncio.Queue(BACKLOG)

    def put(self, message: pb.TrainerMessage) -> None:
        """Takes a message.

        Raises:
            Refusal: The trainer sends more than it may have under way.
        """
        try:
            self._backlog.put_nowait(message)
        except asyncio.QueueFull:
            text = f"{BACKLOG} messages wait to be recorded"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REPORTS", text) from None

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            message = await self._backlog.get()
            await until_it_works(partial(self._act, message))

    async def _act(self, message: pb.TrainerMessage) -> None:
        arm = message.WhichOneof("message")
        assert arm is not None
        body = getattr(message, arm)
        lease = LeaseRef(body.lease.tune_id, body.lease.epoch, self._trainer_id)
        match arm:
            case "accepted":
                await self._accept(lease)
            case "rejected":
                await self._withdraw(lease, message.rejected)
            case "url_request":
                await self._sign(lease, message.url_request)
            case _:
                assert arm in REPORTS
                await self._report(lease, arm, message, body.report_seq)

    async def _accept(self, lease: LeaseRef) -> None:
        if await leases.accept(self._desk.database, lease):
            self._desk.metrics.assignment("accepted")
            self._holdings.start(lease)
        else:
            await self._revoke(lease)

    async def _withdraw(self, lease: LeaseRef, rejected: pb.Rejected) -> None:
        log.warning(f"A trainer rejects a tune: {rejected.reason}", action="assignment_rejected", tune_id=lease.tune_id)
        self._desk.metrics.assignment("rejected")
        self._stream.refrain()
        await leases.withdraw(self._desk.database, lease, rejected.reason or "REJECTED", rejected.details)
        self._holdings.let_go([lease])

    async def _sign(self, lease: LeaseRef, request: pb.UrlRequest) -> None:
        tune = await leases.is_current(self._desk.database, lease)
        if tune is None:
            return await self._revoke(lease)
        urls = await assignments.sign(self._desk.database, self._desk.objects, tune, request)
        return await self._stream.send(pb.GatewayMessage(urls=urls))

    async def _report(self, lease: LeaseRef, arm: str, message: pb.TrainerMessage, report_seq: int) -> None:
        if arm in TERMINAL:
            await self._holdings.flush(lease)  # after it the store takes no more of this attempt
        outcome = await self._desk.results.record(lease, message)
        self._desk.metrics.report(arm, outcome)
        ack = pb.ReportAck(lease=message_of(lease), report_seq=report_seq, outcome=OUTCOMES[outcome])
        await self._stream.send(pb.GatewayMessage(report_ack=ack))
        if arm in TERMINAL or outcome is Outcome.STALE:
            self._holdings.let_go([lease])

    async def _revoke(self, lease: LeaseRef) -> None:
        self._holdings.let_go([lease])
        revoke = pb.Revoke(lease=message_of(lease), reason="the lease is no longer yours")
        await self._stream.send(pb.GatewayMessage(revoke=revoke))


async def until_it_works(work: Callable[[], Awaitable[T]]) -> T:
    """Tries again while the database or the object store is away."""
    while True:
        try:
            return await work()
        except (DatabaseAway, OSError) as exc:
            log.warning(f"Not recorded yet: {exc}", action="record_retried")
            await asyncio.sleep(RETRY)


def message_of(lease: LeaseRef) -> pb.Lease:
    """A lease as the stream names it."""
    return pb.Lease(tune_id=lease.tune_id, epoch=lease.epoch)

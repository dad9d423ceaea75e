"""One connected trainer: the gateway's end of its stream, from Welcome on. Made and fed by the dispatcher.

What it remembers are wishes: the row in the database is the truth, and everything here may be lost at any moment.

    context ──read──> GatewayEnd ──> a beat, asked and answered at once
                                ├──> Recorder, in order
                                └──> Chunks, the newest progress
    outbox ──write──> context        one bounded queue, one writer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import grpc
import structlog

from gateway import assignments, protocol
from gateway.breaches import evicted, legible
from gateway.desk import Desk
from gateway.progress import Chunks
from gateway.protocol import Effect, GatewayEnd
from gateway.recorder import Recorder, until_it_works
from gateway.status import Refusal
from store import leases, trainers
from store.errors import DatabaseAway, ObjectsAway, StateForbids
from store.leases import Claim, HeldAction, LeaseRef, Offer, Renewal
from store.tables import Trainer
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)

OUTBOX = 256  # messages


class Context(Protocol):
    """What a session uses of grpc.aio.ServicerContext."""

    async def read(self) -> Any:  # noqa: ANN401  (grpc has no type for its EOF)
        """The next message, or grpc.aio.EOF."""

    async def write(self, message: pb.GatewayMessage) -> None:
        """Sends a message."""


class Session:
    """One stream of one trainer. Belongs to the event loop."""

    def __init__(self, trainer_id: str, hello: pb.Hello, desk: Desk) -> None:
        self.trainer_id = trainer_id
        self.boot_id = hello.boot_id
        self.session_id = hello.session_id
        self.closed = asyncio.Event()
        self._desk = desk
        self._end = GatewayEnd(trainer_id, hello, desk.settings.heartbeat_seconds)
        self._outbox: asyncio.Queue[pb.GatewayMessage] = asyncio.Queue(OUTBOX)
        self._chunks = Chunks(desk.database, self._end.holdings.due)
        self._recorder = Recorder(self._end, desk, self._chunks, self._perform)
        self._cut: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

    # For the dispatcher

    @property
    def is_drained(self) -> bool:
        """Whether the operator wants the trainer empty."""
        return self._end.is_drained

    def free_slots(self) -> int:
        """How many tunes it may be given now."""
        return 0 if self._is_over() else self._end.free_slots(time.monotonic())

    def offer(self) -> Offer:
        """A free slot, as the store wants to hear of it."""
        return self._end.offer()

    async def assign(self, claim: Claim) -> None:
        """Sends a claimed tune; withdraws it where it is not accepted in time, or where the stream has just ended."""
        message: pb.Assign | None = None
        try:
            message = await assignments.assign(claim, self._desk.objects, self._desk.settings.lease_seconds)
        except ObjectsAway as exc:  # no URLs can be signed; that is not the tune's fault
            log.warning(f"A tune waits: {exc}", action="assignment_put_off", tune_id=claim.tune.id)
        # A trainer that does not read is left alone; the dispatcher never waits for one.
        if message is None or self._is_over() or self._outbox.full():
            self._end.refrain(time.monotonic())
            await leases.withdraw(self._desk.database, claim.lease, "NOT_SENT")
            return
        self._outbox.put_nowait(pb.GatewayMessage(assign=message))
        self._desk.metrics.assignment("sent")
        self._end.assigned(claim.lease)
        self._desk.spawn(self._withdraw_when_overdue(claim.lease))

    async def cancel(self, tune_id: str) -> None:
        """The tune is cancelled."""
        await self._perform(self._end.cancelled(tune_id))

    async def redirect(self, reason: str) -> None:
        """This gateway goes away: the trainer goes to another one."""
        await self._perform(self._end.redirected(reason))

    def cut(self, refusal: Refusal) -> None:
        """Ends the stream with a status."""
        if not self._cut.done():
            self._cut.set_result(refusal)

    async def look(self) -> None:
        """Looks at the trainer's row."""
        if (row := await trainers.current(self._desk.database, self.trainer_id)) is not None:
            await self.heed(row)

    async def heed(self, row: Trainer) -> None:
        """Does what the trainer's row says: ends the stream where a newer Hello stands there, drains, resumes."""
        if (refusal := self._end.look(row.session_id, row.boot_id)) is not None:
            self.cut(refusal)
        else:
            await self._perform(self._end.drained(row.drain_reason))

    async def _eviction(self) -> Refusal | None:
        row = await trainers.current(self._desk.database, self.trainer_id)
        return None if row is None else self._end.look(row.session_id, row.boot_id)

    # The stream

    async def welcome(self) -> None:
        """Restates what the trainer holds; Welcome is the first thing that it hears, Drain the next.

        Raises:
            Refusal: The trainer has said a newer Hello elsewhere.
        """
        database, settings = self._desk.database, self._desk.settings
        held, uptime = self._end.restated(), time.monotonic() - self._desk.started
        seconds, session_id = settings.lease_seconds, self.session_id
        try:
            actions = await leases.restate(database, self.trainer_id, held, seconds, uptime, session_id)
        except StateForbids as exc:
            raise await self._eviction() or evicted(same_process=True) from exc
        for lease in [request.lease for request in self._end.to_accept(actions)]:
            if not await leases.accept(database, lease):
                actions[lease] = HeldAction.ABORT
        await self._send(self._end.welcome(actions, seconds))
        await self.look()

    async def run(self, context: Context) -> None:
        """Serves the stream until the trainer ends it.

        Raises:
            Refusal: The trainer breaks the protocol, has been evicted, or this gateway lets it go.
        """
        refusal: Refusal | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(context))
                tasks.create_task(self._recorder.run())
                tasks.create_task(self._chunks.run())
                tasks.create_task(self._end_when_cut())
                # No task of its own: a group that only waits counts its cancellations wrong (python/cpython#116720).
                await self._read(context)
        except* _Over:
            pass
        except* Refusal as group:
            refusal = _first(group)
        finally:
            self.closed.set()
        _end_if_cancelled()
        if refusal is not None:  # raised up there it would be wrapped into a group
            raise refusal

    async def _write(self, context: Context) -> None:
        while True:
            await context.write(await self._outbox.get())

    async def _read(self, context: Context) -> None:
        while (message := await legible(context.read())) is not grpc.aio.EOF:
            await self._received(message)
        raise _Over

    async def _end_when_cut(self) -> None:
        raise await asyncio.shield(self._cut)

    async def _received(self, message: pb.TrainerMessage) -> None:
        await self._perform(self._end.received(message, time.monotonic()))

    async def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case protocol.Say(message, droppable):
                    await self._send(message, droppable=droppable)
                case protocol.Ask(request):
                    assert isinstance(request, protocol.Renew)
                    await self._beat(request)
                case protocol.Queue(message):
                    self._recorder.put(message)
                case protocol.SlotFreed():
                    self._desk.slot_freed()
                case protocol.ProgressDue():
                    self._chunks.stirred.set()

    async def _beat(self, beat: protocol.Renew) -> None:
        """Renews through the connection that is kept for it."""
        desk = self._desk
        renewal: Renewal | None = None
        try:
            async with asyncio.timeout(desk.settings.heartbeat_seconds):
                for lease in beat.to_accept:
                    await leases.accept(desk.database, lease)
                renewal = await leases.renew(desk.database, self.trainer_id, beat.held, desk.settings.lease_seconds)
                if not await trainers.seen(desk.database, self.trainer_id, self.session_id, self.free_slots()):
                    await self.look()
        except (DatabaseAway, TimeoutError) as exc:
            log.warning(f"A beat could not be recorded: {exc}", action="beat_unrecorded")
            renewal = None
        await self._perform(self._end.answered(beat, renewal, time.monotonic()))

    async def _withdraw_when_overdue(self, lease: LeaseRef) -> None:
        """A timer. It goes on past the stream's end."""
        await asyncio.sleep(self._desk.settings.accept_seconds)
        if (request := self._end.overdue(lease, time.monotonic())) is None:
            return
        log.warning("An assignment was not accepted in time", action="assignment_withdrawn", tune_id=lease.tune_id)
        withdrawn = await until_it_works(partial(leases.withdraw, self._desk.database, lease, request.reason))
        if withdrawn:
            self._desk.metrics.assignment("withdrawn")
        await self._perform(self._end.answered(request, withdrawn, time.monotonic()))

    async def _send(self, message: pb.GatewayMessage, *, droppable: bool = False) -> None:
        """Queues a message. While the trainer does not read, waits, or drops it where that does no harm."""
        if not droppable:
            await self._outbox.put(message)
        elif not self._outbox.full():
            self._outbox.put_nowait(message)

    def _is_over(self) -> bool:
        return self._cut.done() or self.closed.is_set()


class _Over(Exception):
    """The trainer has ended the stream."""


def _end_if_cancelled() -> None:
    """Before Python 3.13 a cancellation is lost where a task of the group fails at the same moment; and grpc never ends
    an rpc whose cancellation was lost.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling() > 0:
        raise asyncio.CancelledError


def _first(group: BaseExceptionGroup[Refusal]) -> Refusal:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Refusal)
    return found

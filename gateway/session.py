"""One connected trainer: the gateway's end of its stream, from Welcome on. Made and fed by the dispatcher.

What it remembers are wishes: the row in the database is the truth, and everything here may be lost at any moment.

    context ──read──> heartbeat, progress, draining         answered or kept at once: nothing may hold up a beat
                └───> accepted, rejected, reports, URLs ──> Recorder, in order
    outbox ──write──> context                               one bounded queue, one writer
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any, Protocol

import grpc
import structlog

from gateway import assignments
from gateway.breaches import breach, check, evicted
from gateway.desk import Desk
from gateway.holdings import Attempt, Holdings
from gateway.recorder import Recorder, message_of, until_it_works
from gateway.status import Refusal
from store import leases, trainers
from store.errors import DatabaseAway
from store.leases import Claim, HeldAction, LeaseRef, Offer
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
        self._hello = hello
        self._desk = desk
        self._outbox: asyncio.Queue[pb.GatewayMessage] = asyncio.Queue(OUTBOX)
        self._holdings = Holdings(desk.database, desk.slot_freed)
        self._recorder = Recorder(trainer_id, desk, self._holdings, self)
        self._warm = list(hello.warm_checkpoints)
        self._blocked_slots = 0  # slots that the trainer cannot fill, for it said so in its last beat
        self._draining = False
        self._not_before = 0.0  # monotonic; a trainer that has just refused is not asked again at once
        self._cut: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

    # For the dispatcher

    def free_slots(self) -> int:
        """How many tunes it may be given now."""
        if self._draining or self._is_over() or time.monotonic() < self._not_before:
            return 0
        return max(0, self._hello.slots - len(self._holdings) - self._blocked_slots)

    def offer(self) -> Offer:
        """A free slot, as the store wants to hear of it."""
        return Offer(self.trainer_id, list(self._hello.engines), self._hello.device_memory_bytes, self._warm)

    async def assign(self, claim: Claim) -> None:
        """Sends a claimed tune; withdraws it where it is not accepted in time, or where the stream has just ended."""
        message = await assignments.assign(claim, self._desk.objects, self._desk.settings.lease_seconds)
        # A trainer that does not read is left alone; the dispatcher never waits for one.
        if self._is_over() or self._outbox.full():
            self.refrain()
            await leases.withdraw(self._desk.database, claim.lease, "NOT_SENT")
            return
        self._outbox.put_nowait(pb.GatewayMessage(assign=message))
        self._desk.metrics.assignment("sent")
        self._desk.spawn(self._withdraw_unless_answered(claim.lease, self._holdings.add(claim.lease)))

    def cancel(self, tune_id: str) -> None:
        """The tune is cancelled: tells the trainer at once where it holds it. A full outbox leaves it to the beat."""
        for lease in self._holdings.of(tune_id):
            self._send_if_room(pb.GatewayMessage(cancel=pb.Cancel(lease=message_of(lease))))

    async def redirect(self, reason: str) -> None:
        """This gateway goes away: the trainer goes to another one."""
        self._draining = True
        await self.send(pb.GatewayMessage(reconnect=pb.Reconnect(reason=reason)))

    def cut(self, refusal: Refusal) -> None:
        """Ends the stream with a status."""
        if not self._cut.done():
            self._cut.set_result(refusal)

    async def look_whether_evicted(self) -> None:
        """Ends the stream where a newer Hello of this trainer stands in the database."""
        row = await trainers.current(self._desk.database, self.trainer_id)
        if row is not None and row.session_id != self.session_id:
            self.cut(evicted(same_process=row.boot_id == self.boot_id))

    # The stream

    async def welcome(self) -> None:
        """Restates what the trainer holds; Welcome is the first thing that it hears."""
        settings = self._desk.settings
        held = [leases.Held(self._lease(each.lease), each.result_pending) for each in self._hello.held]
        uptime = time.monotonic() - self._desk.started
        actions = await leases.restate(self._desk.database, self.trainer_id, held, settings.lease_seconds, uptime)
        welcome = pb.Welcome(
            lease=assignments.duration(settings.lease_seconds),
            heartbeat=assignments.duration(settings.heartbeat_seconds),
        )
        for each in held:
            action = await self._take_up(each.lease, actions[each.lease])
            welcome.held.add(lease=message_of(each.lease), action=pb.HeldAction.Value(f"HELD_ACTION_{action}"))
        await self.send(pb.GatewayMessage(welcome=welcome))

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
                tasks.create_task(self._holdings.flush_all())
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

    async def send(self, message: pb.GatewayMessage) -> None:
        """Queues a message; waits while the trainer does not read."""
        await self._outbox.put(message)

    def refrain(self) -> None:
        """Offers nothing for one beat: the same tune would come back at once, and be rejected again."""
        self._not_before = time.monotonic() + self._desk.settings.heartbeat_seconds

    async def _take_up(self, lease: LeaseRef, action: HeldAction) -> HeldAction:
        """The Accepted of an attempt that goes on may have been lost with the old stream: Hello stands for it."""
        if action is HeldAction.CONTINUE and not await leases.accept(self._desk.database, lease):
            return HeldAction.ABORT
        if action is not HeldAction.ABORT:
            self._holdings.start(lease)
        return action

    async def _write(self, context: Context) -> None:
        while True:
            await context.write(await self._outbox.get())

    async def _read(self, context: Context) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await self._received(message)
        raise _Over

    async def _end_when_cut(self) -> None:
        raise await asyncio.shield(self._cut)

    async def _received(self, message: pb.TrainerMessage) -> None:
        arm = message.WhichOneof("message")
        if arm is None:
            log.warning("A trainer's message is not known here and is ignored", action="unknown_arm")
            return
        check(message)
        match arm:
            case "heartbeat":
                await self._beat(message.heartbeat)
            case "progress":
                self._holdings.note_progress(self._lease(message.progress.lease), message.progress)
            case "draining":
                log.info(f"A trainer leaves: {message.draining.reason}", action="trainer_draining")
                self._draining = True
            case "hello":
                raise breach("Hello is the first message of a stream, and only the first")
            case _:
                if arm in ("accepted", "rejected"):
                    self._holdings.note_answer(self._lease(getattr(message, arm).lease))
                self._recorder.put(message)

    async def _beat(self, beat: pb.Heartbeat) -> None:
        """Renews through the connection that is kept for it. While the database is away, the answer extends nothing:
        so the stream stays, and no lease is said to be lost.
        """
        desk = self._desk
        held = [self._lease(each.lease) for each in beat.held]
        self._warm = list(beat.warm_checkpoints)
        self._blocked_slots = max(0, self._hello.slots - len(held) - beat.free_slots)
        ack = pb.HeartbeatAck(seq=beat.seq)
        try:
            async with asyncio.timeout(desk.settings.heartbeat_seconds):
                renewal = await leases.renew(desk.database, self.trainer_id, held, desk.settings.lease_seconds)
                if not await trainers.seen(desk.database, self.trainer_id, self.session_id, self.free_slots()):
                    await self.look_whether_evicted()
        except (DatabaseAway, TimeoutError) as exc:
            log.warning(f"A beat could not be recorded: {exc}", action="beat_unrecorded")
        else:
            ack.extended.extend(map(message_of, renewal.extended))
            ack.lost.extend(map(message_of, renewal.lost))
            ack.cancelled.extend(map(message_of, renewal.cancelled))
            self._holdings.let_go(renewal.lost)
            self._holdings.let_go_of_all_but(held)
        await self.send(pb.GatewayMessage(heartbeat_ack=ack))
        if self.free_slots() > 0:
            desk.slot_freed()

    async def _withdraw_unless_answered(self, lease: LeaseRef, attempt: Attempt) -> None:
        """A timer. It goes on past the stream's end: a trainer that comes back in time accepts by its Hello."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._desk.settings.accept_seconds):
                await attempt.answered.wait()
                return
        log.warning("An assignment was not accepted in time", action="assignment_withdrawn", tune_id=lease.tune_id)
        if await until_it_works(partial(leases.withdraw, self._desk.database, lease, "NOT_ACCEPTED")):
            self._desk.metrics.assignment("withdrawn")
            self.refrain()
            self._holdings.let_go([lease])
            revoke = pb.Revoke(lease=message_of(lease), reason="it was not accepted in time")
            self._send_if_room(pb.GatewayMessage(revoke=revoke))

    def _send_if_room(self, message: pb.GatewayMessage) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._outbox.put_nowait(message)

    def _is_over(self) -> bool:
        return self._cut.done() or self.closed.is_set()

    def _lease(self, lease: pb.Lease) -> LeaseRef:
        """Fenced by who the trainer is by its token, whatever it says."""
        return LeaseRef(lease.tune_id, lease.epoch, self.trainer_id)


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

"""One connected trainer: the gateway's end of its stream, from Welcome on. Made and fed by the dispatcher.

What it remembers are wishes: the row in the database is the truth, and everything here may be lost at any moment.

    context ──read──> heartbeat, progress, draining        answered or kept at once: nothing may hold up a beat
                └───> accepted, rejected, reports, URLs ──> one queue, one task, in order; waits for the database
    outbox ──write──> context                              one bounded queue, one writer
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
import structlog

from gateway import assignments, rules, status
from gateway.progress import ProgressBuffer
from gateway.results import REPORTS, TERMINAL, Results
from gateway.status import Refusal
from gateway.stream_metrics import StreamMetrics
from store import leases, trainers
from store.database import Database
from store.errors import DatabaseAway
from store.leases import Claim, LeaseRef, Offer
from store.moves import POISON_LIMIT
from store.objects import Objects
from store.reports import Outcome
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)

T = TypeVar("T")

OUTBOX = 256  # messages
BACKLOG = 2048  # messages whose recording is not done; a trainer has at most 64 reports under way for each attempt
PROGRESS_PERIOD = 0.5  # seconds between two chunks of one trainer's progress
RETRY = 1.0  # seconds until the database or the object store is asked again

OUTCOMES = {
    Outcome.RECORDED: pb.REPORT_OUTCOME_RECORDED,
    Outcome.ALREADY_RECORDED: pb.REPORT_OUTCOME_ALREADY_RECORDED,
    Outcome.STALE: pb.REPORT_OUTCOME_STALE,
}


@dataclass(frozen=True)
class StreamSettings:
    """What the operator says about streams. Seconds where nothing else is said."""

    gateway_id: str
    """This replica's name."""
    lease_seconds: float = 45.0
    """Length of a lease."""
    heartbeat_seconds: float = 5.0
    """Between two beats."""
    accept_seconds: float = 10.0
    """Until an assignment that is not accepted is withdrawn."""
    poll_seconds: float = 2.0
    """Between two looks into the queue without a wake-up."""
    reap_seconds: float = 5.0
    """At most so long between two rounds of the reaper."""
    max_attempts: int = POISON_LIMIT
    """Attempts that may end badly without a newer snapshot between them."""


@dataclass(frozen=True)
class Desk:
    """What every session of this gateway works with."""

    database: Database
    objects: Objects
    results: Results
    settings: StreamSettings
    metrics: StreamMetrics
    slot_freed: Callable[[], None]
    """Wakes the dispatcher."""
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    """Runs something that outlives the stream."""


@dataclass
class _Attempt:
    """An attempt that this trainer is believed to hold."""

    progress: ProgressBuffer = field(default_factory=ProgressBuffer)
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # Accepted or Rejected has come
    running: bool = False  # and is in the database


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
        self._backlog: asyncio.Queue[pb.TrainerMessage] = asyncio.Queue(BACKLOG)
        self._attempts: dict[LeaseRef, _Attempt] = {}
        self._warm = list(hello.warm_checkpoints)
        self._blocked_slots = 0  # slots that the trainer cannot fill, for it said so in its last beat
        self._draining = False
        self._not_before = 0.0  # monotonic; a trainer that has just refused is not asked again at once
        self._progress_waiting = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._cut: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

    # For the dispatcher

    def free_slots(self) -> int:
        """How many tunes it may be given now."""
        if self._draining or self._cut.done() or self.closed.is_set() or time.monotonic() < self._not_before:
            return 0
        return max(0, self._hello.slots - len(self._attempts) - self._blocked_slots)

    def offer(self) -> Offer:
        """A free slot, as the store wants to hear of it."""
        return Offer(self.trainer_id, list(self._hello.engines), self._hello.device_memory_bytes, self._warm)

    async def assign(self, claim: Claim) -> None:
        """Sends a claimed tune; withdraws it where it is not accepted in time, or where the stream has just ended."""
        settings = self._desk.settings
        message = await assignments.assign(claim, self._desk.objects, settings.lease_seconds)
        # A trainer that does not read is left alone; the dispatcher never waits for one.
        if self.closed.is_set() or self._cut.done() or self._outbox.full():
            self._refrain()
            await leases.withdraw(self._desk.database, claim.lease, "NOT_SENT")
            return
        self._outbox.put_nowait(pb.GatewayMessage(assign=message))
        self._desk.metrics.assignment("sent")
        attempt = self._attempts[claim.lease] = _Attempt()
        self._desk.spawn(self._withdraw_unless_answered(claim.lease, attempt))

    def cancel(self, tune_id: str) -> None:
        """The tune is cancelled: tells the trainer at once where it holds it. A full outbox leaves it to the beat."""
        for lease in self._attempts:
            if lease.tune_id == tune_id:
                with contextlib.suppress(asyncio.QueueFull):
                    self._outbox.put_nowait(pb.GatewayMessage(cancel=pb.Cancel(lease=_message(lease))))

    async def redirect(self, reason: str) -> None:
        """This gateway goes away: the trainer goes to another one."""
        self._draining = True
        await self._send(reconnect=pb.Reconnect(reason=reason))

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
        actions = await leases.restate(self._desk.database, self.trainer_id, held, settings.lease_seconds)
        welcome = pb.Welcome(
            lease=assignments.duration(settings.lease_seconds),
            heartbeat=assignments.duration(settings.heartbeat_seconds),
        )
        for each in held:
            action = actions[each.lease]
            if action is leases.HeldAction.CONTINUE and not await leases.accept(self._desk.database, each.lease):
                action = (
                    leases.HeldAction.ABORT
                )  # its Accepted was lost with the old stream, and so is the lease by now
            if action is not leases.HeldAction.ABORT:
                attempt = self._attempts[each.lease] = _Attempt(running=True)
                attempt.answered.set()
            welcome.held.add(lease=_message(each.lease), action=pb.HeldAction.Value(f"HELD_ACTION_{action}"))
        await self._send(welcome=welcome)

    async def run(self, context: Context) -> None:
        """Serves the stream until the trainer ends it.

        Raises:
            Refusal: The trainer breaks the protocol, has been evicted, or this gateway lets it go.
        """
        refusal: Refusal | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(context))
                tasks.create_task(self._record_all())
                tasks.create_task(self._flush_all())
                tasks.create_task(self._end_when_cut())
                tasks.create_task(self._read(context))
        except* _Over:
            pass
        except* Refusal as group:
            refusal = _first(group)
        finally:
            self.closed.set()
        if refusal is not None:  # raised up there it would be wrapped into a group
            raise refusal

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
                self._note_progress(message.progress)
            case "draining":
                log.info(f"A trainer leaves: {message.draining.reason}", action="trainer_draining")
                self._draining = True
            case "hello":
                raise _breach("Hello is the first message of a stream, and only the first")
            case _:
                if arm in ("accepted", "rejected"):
                    self._note_answer(self._lease(getattr(message, arm).lease))
                try:
                    self._backlog.put_nowait(message)
                except asyncio.QueueFull:
                    text = f"{BACKLOG} messages wait to be recorded"
                    raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REPORTS", text) from None

    async def _send(self, **arm: Any) -> None:  # noqa: ANN401  (one arm of GatewayMessage, by its name)
        await self._outbox.put(pb.GatewayMessage(**arm))

    # Beats

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
                newest = await trainers.seen(desk.database, self.trainer_id, self.session_id, self.free_slots())
                if not newest:
                    await self.look_whether_evicted()
        except (DatabaseAway, TimeoutError) as exc:
            log.warning(f"A beat could not be recorded: {exc}", action="beat_unrecorded")
        else:
            ack.extended.extend(map(_message, renewal.extended))
            ack.lost.extend(map(_message, renewal.lost))
            ack.cancelled.extend(map(_message, renewal.cancelled))
            self._let_go(renewal.lost)
            self._let_go(
                lease for lease, attempt in list(self._attempts.items()) if attempt.running and lease not in held
            )
        await self._send(heartbeat_ack=ack)
        if self.free_slots() > 0:
            desk.slot_freed()

    def _let_go(self, lost: Iterable[LeaseRef]) -> None:
        """The trainer holds them no more."""
        for lease in lost:
            if self._attempts.pop(lease, None) is not None:
                self._desk.slot_freed()

    # Assignments

    def _note_answer(self, lease: LeaseRef) -> None:
        if (attempt := self._attempts.get(lease)) is not None:
            attempt.answered.set()

    async def _withdraw_unless_answered(self, lease: LeaseRef, attempt: _Attempt) -> None:
        """A timer. It goes on past the stream's end: a trainer that comes back in time accepts by its Hello."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._desk.settings.accept_seconds):
                await attempt.answered.wait()
                return
        log.warning("An assignment was not accepted in time", action="assignment_withdrawn", tune_id=lease.tune_id)
        if await _until_it_works(partial(leases.withdraw, self._desk.database, lease, "NOT_ACCEPTED")):
            self._desk.metrics.assignment("withdrawn")
            self._refrain()
            self._let_go([lease])
            with contextlib.suppress(asyncio.QueueFull):
                revoke = pb.Revoke(lease=_message(lease), reason="it was not accepted in time")
                self._outbox.put_nowait(pb.GatewayMessage(revoke=revoke))

    async def _accepted(self, lease: LeaseRef) -> None:
        if not await leases.accept(self._desk.database, lease):
            self._let_go([lease])
            await self._send(revoke=pb.Revoke(lease=_message(lease), reason="the lease is no longer yours"))
            return
        self._desk.metrics.assignment("accepted")
        attempt = self._attempts.setdefault(lease, _Attempt())
        attempt.running = True
        attempt.answered.set()
        self._progress_waiting.set()

    async def _rejected(self, lease: LeaseRef, rejected: pb.Rejected) -> None:
        log.warning(f"A trainer rejects a tune: {rejected.reason}", action="assignment_rejected", tune_id=lease.tune_id)
        self._desk.metrics.assignment("rejected")
        self._refrain()
        await leases.withdraw(self._desk.database, lease, rejected.reason or "REJECTED", rejected.details)
        self._let_go([lease])

    def _refrain(self) -> None:
        """Offers nothing for one beat: the same tune would come back at once, and be rejected again."""
        self._not_before = time.monotonic() + self._desk.settings.heartbeat_seconds

    # Progress

    def _note_progress(self, progress: pb.Progress) -> None:
        attempt = self._attempts.get(self._lease(progress.lease))
        if attempt is not None:  # of any other lease nothing would be recorded
            attempt.progress.note(progress)
            self._progress_waiting.set()

    async def _flush_all(self) -> None:
        while True:
            await self._progress_waiting.wait()
            self._progress_waiting.clear()
            for lease in list(self._attempts):
                with contextlib.suppress(DatabaseAway):  # it is kept, and the newest goes out later
                    await self._flush(lease)
            await asyncio.sleep(PROGRESS_PERIOD)
            if any(attempt.running and attempt.progress.is_due for attempt in self._attempts.values()):
                self._progress_waiting.set()

    async def _flush(self, lease: LeaseRef) -> None:
        async with self._flushing:
            attempt = self._attempts.get(lease)
            if attempt is not None and attempt.running:
                await attempt.progress.flush(self._desk.database, lease)

    # Reports

    async def _record_all(self) -> None:
        while True:
            message = await self._backlog.get()
            await _until_it_works(partial(self._record, message))

    async def _record(self, message: pb.TrainerMessage) -> None:
        arm = message.WhichOneof("message")
        assert arm is not None
        body = getattr(message, arm)
        lease = self._lease(body.lease)
        match arm:
            case "accepted":
                await self._accepted(lease)
            case "rejected":
                await self._rejected(lease, message.rejected)
            case "url_request":
                await self._sign(lease, message.url_request)
            case _:
                assert arm in REPORTS
                await self._report(lease, arm, message, body.report_seq)

    async def _sign(self, lease: LeaseRef, request: pb.UrlRequest) -> None:
        tune = await leases.is_current(self._desk.database, lease)
        if tune is None:
            self._let_go([lease])
            await self._send(revoke=pb.Revoke(lease=request.lease, reason="the lease is no longer yours"))
            return
        urls = await assignments.sign(self._desk.database, self._desk.objects, tune, request)
        await self._send(urls=urls)

    async def _report(self, lease: LeaseRef, arm: str, message: pb.TrainerMessage, report_seq: int) -> None:
        if arm in TERMINAL:
            await self._flush(lease)  # after it the store takes no more of this attempt
        outcome = await self._desk.results.record(lease, message)
        self._desk.metrics.report(arm, outcome)
        ack = pb.ReportAck(lease=_message(lease), report_seq=report_seq, outcome=OUTCOMES[outcome])
        await self._send(report_ack=ack)
        if arm in TERMINAL or outcome is Outcome.STALE:
            self._let_go([lease])

    def _lease(self, lease: pb.Lease) -> LeaseRef:
        """Fenced by who the trainer is by its token, whatever it says."""
        return LeaseRef(lease.tune_id, lease.epoch, self.trainer_id)


class _Over(Exception):
    """The trainer has ended the stream."""


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
        raise _breach("a number is not finite")


def evicted(*, same_process: bool) -> Refusal:
    """Why a stream ends whose trainer has said Hello again."""
    if same_process:
        text = "A newer stream of this trainer process has taken over."
        return Refusal(grpc.StatusCode.ABORTED, "SESSION_REPLACED", text)
    text = "Another process has said Hello with this trainer_id."
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_TRAINER", text)


def _breach(text: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_BREACH", text)


async def _until_it_works(work: Callable[[], Awaitable[T]]) -> T:
    """Tries again while the database or the object store is away: the trainer keeps what is not acknowledged."""
    while True:
        try:
            return await work()
        except (DatabaseAway, OSError) as exc:
            log.warning(f"Not recorded yet: {exc}", action="record_retried")
            await asyncio.sleep(RETRY)


def _message(lease: LeaseRef) -> pb.Lease:
    return pb.Lease(tune_id=lease.tune_id, epoch=lease.epoch)


def _first(group: BaseExceptionGroup[Refusal]) -> Refusal:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Refusal)
    return found

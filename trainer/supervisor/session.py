"""One stream to one gateway, from Hello to its end: the trainer's end of it. Called by the connection.

Knows gRPC and the rhythm of the protocol (Welcome first, beats, reports in order, at most five Progress a second); what
a message means is the supervisor's, behind `Work`. One task writes, from one bounded queue: where the gateway is slow,
senders wait, and Progress collects where it is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grpc.aio
import structlog

from trainer.supervisor.leases import Lease
from trainer.supervisor.spool import Report
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

log = structlog.get_logger()

WELCOME_TIMEOUT = 20.0  # seconds
MISSED = 3  # beats without an answer that end a stream
PROGRESS_PERIOD = 0.2  # seconds between two Progress of a tune
QUEUE = 64  # messages
GOODBYE = 2.0  # seconds for the gateway to take the last messages

Call = Any  # grpc.aio.StreamStreamCall[pb.TrainerMessage, pb.GatewayMessage]; the stubs give it no usable type


class Work(Protocol):
    """What the supervisor is to a session."""

    reports_waiting: asyncio.Event
    """Set by the supervisor when a report may be sent, cleared by the session."""
    progress_waiting: asyncio.Event
    """The same for Progress."""
    beat_due: asyncio.Event
    """Set when the gateway should hear at once how many slots are free."""

    def hello(self, session_id: str) -> pb.Hello:
        """All that is held."""

    async def welcomed(self, welcome: pb.Welcome, hello_sent: float, session: Session) -> None:
        """The gateway has answered; the session may be sent through from now on."""

    def heartbeat(self) -> pb.Heartbeat:
        """The next beat, sent now."""

    def silence(self) -> float:
        """Seconds since the oldest beat without an answer."""

    def reports(self) -> Iterable[Report]:
        """What may be sent, in order for each lease; also what was sent before and is not acknowledged."""

    def progress(self, lease: Lease | None = None) -> Iterable[pb.Progress]:
        """What is due, of one lease or of all; each once."""

    async def received(self, message: pb.GatewayMessage) -> None:
        """A message after Welcome."""


@dataclass(frozen=True)
class End:
    """How a stream ended."""

    code: grpc.StatusCode | None
    """The gateway's; None where we ended it."""
    details: str
    welcomed: bool
    """Whether it ever came to Welcome."""
    redirected: bool = False
    """Whether the gateway has asked us to go to another one."""


class Session:
    """One stream."""

    def __init__(self, work: Work, token: str) -> None:
        self._work = work
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._outbox: asyncio.Queue[pb.TrainerMessage] = asyncio.Queue(QUEUE)
        self._closing = asyncio.Event()
        self._sent: dict[Lease, int] = {}  # the newest report_seq sent on this stream

    async def send(self, message: pb.TrainerMessage) -> None:
        """Queues a message; waits while the queue is full."""
        await self._outbox.put(message)

    def close(self) -> None:
        """Ends the stream once all that is queued is sent."""
        self._closing.set()

    async def run(self, channel: grpc.aio.Channel) -> End:
        """From Hello to the end of the stream."""
        call: Call = trainer_service_pb2_grpc.TrainerServiceStub(channel).Connect(metadata=self._metadata)
        try:
            return await self._converse(call, await self._greet(call))
        except _Over as over:
            return over.end
        finally:
            call.cancel()

    async def _greet(self, call: Call) -> float:
        """Hello and Welcome; returns the seconds between two beats."""
        hello_sent = time.monotonic()
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT):
                await _write(call, pb.TrainerMessage(hello=self._work.hello(str(uuid.uuid4()))))
                message = await _read(call)
        except TimeoutError:
            raise _Over(End(None, f"no Welcome within {WELCOME_TIMEOUT:.0f} s", welcomed=False)) from None
        except _Over as over:
            raise _Over(replace(over.end, welcomed=False)) from None
        if not message.HasField("welcome"):
            raise _Over(End(None, "the gateway's first message is no Welcome", welcomed=False))
        await self._work.welcomed(message.welcome, hello_sent, self)
        return message.welcome.heartbeat.ToTimedelta().total_seconds()

    async def _converse(self, call: Call, heartbeat: float) -> End:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_all(call))
                tasks.create_task(self._beat(heartbeat))
                tasks.create_task(self._report())
                tasks.create_task(self._tell_progress())
                tasks.create_task(self._close_when_told())
                tasks.create_task(self._read_all(call))
        except* _Over as group:
            end = _first(group).end
        if end.code is None and self._closing.is_set():
            await _say_goodbye(call)
        return end

    async def _read_all(self, call: Call) -> None:
        while True:
            message = await _read(call)
            if message.HasField("reconnect"):
                raise _Over(End(None, message.reconnect.reason, welcomed=True, redirected=True))
            await self._work.received(message)

    async def _write_all(self, call: Call) -> None:
        while True:
            await _write(call, await self._outbox.get())
            self._outbox.task_done()

    async def _beat(self, period: float) -> None:
        while True:
            if self._work.silence() > MISSED * period:
                raise _Over(End(None, f"{MISSED} beats without an answer", welcomed=True))
            self._work.beat_due.clear()
            await self.send(pb.TrainerMessage(heartbeat=self._work.heartbeat()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._work.beat_due.wait()

    async def _report(self) -> None:
        while True:
            self._work.reports_waiting.clear()
            for report in self._work.reports():
                if report.seq <= self._sent.get(report.lease, 0):
                    continue
                if report.is_terminal:  # nothing about the attempt is heard after it
                    await self._send_progress(report.lease)
                await self.send(report.message)
                self._sent[report.lease] = report.seq
            await self._work.reports_waiting.wait()

    async def _tell_progress(self) -> None:
        while True:
            await self._work.progress_waiting.wait()
            self._work.progress_waiting.clear()
            await self._send_progress(None)
            await asyncio.sleep(PROGRESS_PERIOD)

    async def _send_progress(self, lease: Lease | None) -> None:
        for progress in self._work.progress(lease):
            await self.send(pb.TrainerMessage(progress=progress))

    async def _close_when_told(self) -> None:
        await self._closing.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE):
                await self._outbox.join()
        raise _Over(End(None, "this trainer leaves", welcomed=True))


class _Over(Exception):
    """The stream is at its end."""

    def __init__(self, end: End) -> None:
        super().__init__(end.details)
        self.end = end


async def _read(call: Call) -> pb.GatewayMessage:
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as exc:
        raise _Over(End(exc.code(), exc.details() or "", welcomed=True)) from None
    if message is grpc.aio.EOF:
        raise _Over(await _ended(call))
    assert isinstance(message, pb.GatewayMessage)
    return message


async def _write(call: Call, message: pb.TrainerMessage) -> None:
    try:
        await call.write(message)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter is grpc.aio's word for a call that is over
        raise _Over(await _ended(call)) from None


async def _ended(call: Call) -> End:
    return End(await call.code(), await call.details() or "", welcomed=True)


async def _say_goodbye(call: Call) -> None:
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async with asyncio.timeout(GOODBYE):
            await call.done_writing()
            await call.code()


def _first(group: BaseExceptionGroup[_Over]) -> _Over:
    """The first of them: what comes after it is its echo."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, _Over)
    return found

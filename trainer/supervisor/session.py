"""One stream to one gateway, from its opening to its end: the trainer's end of it. Called by the connection.

Knows gRPC, and no message: what is said and what it means is decided in protocol.py, behind `Work`. One task writes,
and asks for the next message only when the stream has taken the last: where the gateway is slow, things wait where they
are made, and the newest Progress wins.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grpc.aio

from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

GOODBYE = 2.0  # seconds for the gateway to take the last messages

Call = Any  # grpc.aio.StreamStreamCall[pb.TrainerMessage, pb.GatewayMessage]; the stubs give it no usable type


class Work(Protocol):
    """What the supervisor is to a session."""

    def opened(self, session: Session) -> None:
        """There is a stream."""

    def lost(self) -> bool:
        """The stream is no more. Returns whether it had come to its Welcome."""

    def next_message(self) -> pb.TrainerMessage | None:
        """What to send now; None: nothing before stir() is called, or quiet_for() has passed."""

    def quiet_for(self) -> float | None:
        """Seconds until something is to be sent though nothing happens; None: for ever."""

    def patient_for(self) -> float:
        """Seconds until look() is to be called, unless something is heard before."""

    async def look(self) -> None:
        """Time has passed."""

    async def received(self, message: pb.GatewayMessage) -> None:
        """A message of the gateway."""


@dataclass(frozen=True)
class End:
    """How a stream ended."""

    code: grpc.StatusCode | None
    """The gateway's; None where we ended it."""
    details: str
    welcomed: bool = False
    """Whether it ever came to Welcome."""
    redirected: bool = False
    """Whether the gateway has asked us to go to another one."""


class Session:
    """One stream."""

    def __init__(self, work: Work, token: str) -> None:
        self._work = work
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._stirred = asyncio.Event()  # set when there may be something to send, cleared by the writer
        self._heard = asyncio.Event()  # set when the gateway has said something, cleared by the one who waits for it
        self._leaving = asyncio.Event()  # set when nothing more is to be said than what waits
        self._closed: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def stir(self) -> None:
        """There may be something to send."""
        self._stirred.set()

    def close(self, why: str, *, redirected: bool = False) -> None:
        """Ends the stream now."""
        if not self._closed.done():
            self._closed.set_result(End(None, why, redirected=redirected))

    def leave(self) -> None:
        """Ends the stream once all that waits is sent."""
        self._leaving.set()
        self.stir()

    async def run(self, channel: grpc.aio.Channel) -> End:
        """From Hello to the end of the stream."""
        call: Call = trainer_service_pb2_grpc.TrainerServiceStub(channel).Connect(metadata=self._metadata)
        self._work.opened(self)
        try:
            end = await self._converse(call)
            if end.code is None and self._leaving.is_set():
                await _say_goodbye(call)
        finally:
            welcomed = self._work.lost()
            call.cancel()
        return replace(end, welcomed=welcomed)

    async def _converse(self, call: Call) -> End:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_all(call))
                tasks.create_task(self._look())
                tasks.create_task(self._end_when_closed())
                tasks.create_task(self._end_when_left())
                # No task of its own: a group that only waits counts its cancellations wrong (python/cpython#116720).
                await self._read_all(call)
        except* _Over as group:
            end = _first(group).end
        _end_if_cancelled()
        return end

    async def _read_all(self, call: Call) -> None:
        while True:
            await self._work.received(await _read(call))
            self._heard.set()

    async def _write_all(self, call: Call) -> None:
        while True:
            self._stirred.clear()
            while (message := self._work.next_message()) is not None:
                await _write(call, message)
            if self._leaving.is_set():
                raise _Over(_LEFT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._work.quiet_for()):
                    await self._stirred.wait()

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._work.patient_for()):
                    await self._heard.wait()
            self._heard.clear()
            await self._work.look()

    async def _end_when_closed(self) -> None:
        raise _Over(await asyncio.shield(self._closed))

    async def _end_when_left(self) -> None:
        """The writer ends it sooner, unless the gateway reads no more."""
        await self._leaving.wait()
        await asyncio.sleep(GOODBYE)
        raise _Over(_LEFT)


_LEFT = End(None, "this trainer leaves")


def _end_if_cancelled() -> None:
    """Before Python 3.13 a cancellation is lost where a task of the group fails at the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() > 0:
        raise asyncio.CancelledError


class _Over(Exception):
    """The stream is at its end."""

    def __init__(self, end: End) -> None:
        super().__init__(end.details)
        self.end = end


async def _read(call: Call) -> pb.GatewayMessage:
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as exc:
        raise _Over(End(exc.code(), exc.details() or "")) from None
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
    return End(await call.code(), await call.details() or "")


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

"""The stream's servicer: Hello in, a session while it lasts. Called by the gRPC server; knows no other message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from gateway.breaches import breach, check, legible
from gateway.dispatch import Dispatcher
from gateway.session import Context, Session
from gateway.status import Refusal
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

HELLO_TIMEOUT = 20.0  # seconds
#: Seconds for the database to take up a Hello. Half of what a trainer waits for its Welcome: what is done for a Hello
#: after its trainer has said another one elsewhere would end leases that it could not name yet.
ADMISSION = 10.0


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """TrainerService.

    Args:
        dispatcher: Takes up the sessions.
        trainer_id: Who calls, by its token or certificate.
    """

    def __init__(self, dispatcher: Dispatcher, trainer_id: Callable[[], str]) -> None:
        self._dispatcher = dispatcher
        self._trainer_id = trainer_id

    # A coroutine that reads and writes through the context: reading and writing are tasks of one group, and the stubs
    # know only the generator form.
    async def Connect(self, requests: Any, context: Context) -> None:  # type: ignore[override]  # noqa: ANN401, N802
        """See the proto."""
        trainer_id = self._trainer_id()
        hello = await _hello(context)
        if hello.trainer_id != trainer_id:
            text = f"The token is that of {trainer_id!r}, and Hello says {hello.trainer_id!r}."
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "OTHER_TRAINER", text)
        structlog.contextvars.bind_contextvars(session_id=hello.session_id)
        session = await self._admit(trainer_id, hello)
        try:
            await session.run(context)
        finally:
            self._dispatcher.dismiss(session)

    async def _admit(self, trainer_id: str, hello: pb.Hello) -> Session:
        try:
            async with asyncio.timeout(ADMISSION):
                return await self._dispatcher.admit(trainer_id, hello)
        except TimeoutError:
            text = f"The database has not taken up Hello within {ADMISSION:.0f} s; call another gateway."
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "DATABASE_AWAY", text) from None


async def _hello(context: Context) -> pb.Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT):
            message = await legible(context.read())
    except TimeoutError:
        text = f"no Hello within {HELLO_TIMEOUT:.0f} s"
        raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "NO_HELLO", text) from None
    if message is grpc.aio.EOF or not message.HasField("hello"):
        raise breach("the first message is no Hello")
    check(message)
    hello: pb.Hello = message.hello
    return hello

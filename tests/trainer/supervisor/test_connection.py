"""Which gateway is called when: waits between two calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from trainer.supervisor.config import Settings
from trainer.supervisor.connection import Connection
from trainer.supervisor.session import End

AWAY = End(grpc.StatusCode.UNAVAILABLE, "nobody is there", welcomed=False)


class Refusing:
    """A session to a gateway that is away."""

    async def run(self, channel: grpc.aio.Channel) -> End:
        return AWAY


async def waits(monkeypatch: pytest.MonkeyPatch, count: int, lease_seconds: float) -> list[float]:
    """Seconds between the first calls."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)
        if len(found) == count:
            connection.leave()

    def session() -> Any:
        return Refusing()

    settings = Settings(trainer_id="trainer-1", trainer_token="tt_1", gateways=("127.0.0.1:1", "127.0.0.1:2"))
    connection = Connection(
        settings, session, holds_work=lambda: len(found) < count, lease_seconds=lambda: lease_seconds
    )
    monkeypatch.setattr(asyncio, "sleep", note)
    await connection.run()
    return found


async def test_waits_grow_while_no_gateway_has_said_how_long_a_lease_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await waits(monkeypatch, 12, lease_seconds=0.0)

    assert found[0] <= 0.5
    assert 5.0 <= max(found) <= 10.0


async def test_all_gateways_are_called_before_a_lease_ends_however_often_they_have_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = await waits(monkeypatch, 12, lease_seconds=3.0)

    assert max(found) <= 0.5


async def test_who_leaves_calls_on_while_there_is_something_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def session() -> Any:
        nonlocal calls
        calls += 1
        return Refusing()

    async def at_once(seconds: float) -> None:
        """Waits for nothing."""

    monkeypatch.setattr(asyncio, "sleep", at_once)
    settings = Settings(trainer_id="trainer-1", trainer_token="tt_1")
    connection = Connection(settings, session, holds_work=lambda: calls < 3, lease_seconds=lambda: 45.0)
    connection.leave()

    await connection.run()

    assert calls == 3

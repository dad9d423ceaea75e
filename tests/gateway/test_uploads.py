"""Completions of one asset take turns, also those that come when an earlier one has failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.metrics import Metrics
from gateway.uploads import Uploads
from store.errors import NotFound


async def test_completions_of_one_asset_take_turns_though_one_fails_while_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside, most, go_on = 0, 0, asyncio.Semaphore(0)

    async def find(*_: object) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            await go_on.acquire()
        finally:
            inside -= 1
        raise NotFound

    monkeypatch.setattr("gateway.uploads.assets.find", find)
    nothing: Any = None
    uploads = Uploads(nothing, nothing, nothing, Metrics("1"), max_picture_bytes=1, max_weights_bytes=1)
    first, second = (asyncio.create_task(uploads.complete("acme", "asset_1")) for _ in range(2))
    await asyncio.sleep(0)

    go_on.release()  # the first one fails, and the third comes before the second has gone on
    third = asyncio.create_task(uploads.complete("acme", "asset_1"))
    await asyncio.wait({first})
    for _ in range(2):
        go_on.release()
    ended = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(error) for error in ended] == [NotFound] * 3
    assert most == 1

"""Completions take turns: those of one asset, also when an earlier one has failed, and those of a tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.metrics import Metrics
from gateway.uploads import Uploads
from store.errors import NotFound
from store.tables import Asset


def some_uploads() -> Uploads:
    nothing: Any = None
    return Uploads(nothing, nothing, nothing, Metrics("1"), max_picture_bytes=1, max_weights_bytes=1)


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
    uploads = some_uploads()
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


async def test_large_weights_of_one_tenant_make_neither_pictures_nor_other_tenants_weights_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    go_on = asyncio.Event()

    async def find(_: object, tenant_id: str, id: str) -> Any:
        return Asset(id=id, name=id, tenant_id=tenant_id, asset_type=id.split("-")[0], status="ready_to_upload")

    async def judge(_: Uploads, row: Any, *__: object) -> Any:
        begun.put_nowait((row.tenant_id, row.id))
        if row.asset_type == "checkpoint":
            await go_on.wait()
        return row

    monkeypatch.setattr("gateway.uploads.assets.find", find)
    monkeypatch.setattr(Uploads, "_judge", judge)
    uploads = some_uploads()
    large = [asyncio.create_task(uploads.complete("acme", f"checkpoint-{number}")) for number in range(6)]
    at_first = [await begun.get(), await begun.get()]

    async with asyncio.timeout(20):
        await uploads.complete("acme", "file-1")
        await uploads.complete("other", "file-2")
        others = asyncio.create_task(uploads.complete("other", "checkpoint-7"))
        next_ones = [await begun.get() for _ in range(3)]
    still_waiting = begun.empty()
    go_on.set()
    await asyncio.gather(*large, others)

    assert at_first == [("acme", "checkpoint-0"), ("acme", "checkpoint-1")]
    assert next_ones == [("acme", "file-1"), ("other", "file-2"), ("other", "checkpoint-7")]
    assert still_waiting, "a tenant has two at a time"
    assert begun.qsize() == 4


async def test_who_waits_for_its_turn_sees_what_another_gateway_made_of_the_asset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, asked, go_on = "ready_to_upload", asyncio.Semaphore(0), asyncio.Event()

    async def find(_: object, tenant_id: str, id: str) -> Any:
        asked.release()
        return Asset(id=id, name=id, tenant_id=tenant_id, asset_type="checkpoint", status=status)

    async def judge(_: Uploads, row: Any, *__: object) -> Any:
        await go_on.wait()
        return row

    monkeypatch.setattr("gateway.uploads.assets.find", find)
    monkeypatch.setattr(Uploads, "_judge", judge)
    uploads = some_uploads()
    tasks = [asyncio.create_task(uploads.complete("acme", f"checkpoint-{number}")) for number in range(3)]
    async with asyncio.timeout(20):
        for _ in range(5):  # two have looked twice, and one waits
            await asked.acquire()

    status = "rejected"
    go_on.set()
    rows = await asyncio.gather(*tasks)

    assert [row.status for row in rows] == ["ready_to_upload", "ready_to_upload", "rejected"]

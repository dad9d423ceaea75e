"""Streams over HTTP, through a real uvicorn where the connection matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.http.events import wants_lines
from gateway.http.requests import Limits
from store.errors import NotFound, StateForbids
from tests.servers.front import Front, front
from tests.servers.uvicorn import served
from tunesmith.v1 import tune_pb2

PATH = "/v1/tune/tune_1/events"
LINES = {"accept": "application/x-ndjson"}


@pytest.fixture(params=["loopback", "socket"])
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    limits = Limits(keepalive_seconds=0.05)
    async with front(socket=request.param == "socket", limits=limits) as made:
        yield made


def warning(number: int, details: str = "") -> tune_pb2.TuneEvent:
    event = tune_pb2.TuneEvent(id=number, tune_id="tune_1")
    event.event.warning.details = details
    return event


def frames(text: str) -> list[dict[str, str]]:
    """What an EventSource would see: one dict a dispatched event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            found.append(fields)
    return found


async def test_a_stream_is_server_sent_events_with_ids_and_names(door: Front) -> None:
    door.tunes.events = [warning(1, "line\nbreak"), warning(2)]

    answer = await door.http.get(PATH)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    first, second, end = frames(answer.text)
    assert (first["id"], first["event"]) == ("1", "warning")
    assert json.loads(first["data"])["event"] == {"type": "warning", "reason": "", "details": "line\nbreak"}
    assert second["id"] == "2"
    assert end == {"event": "end", "data": "{}"}


async def test_a_stream_is_a_json_object_a_line_where_that_is_asked_for(door: Front) -> None:
    door.tunes.events = [warning(1), warning(2)]

    answer = await door.http.get(PATH, headers=LINES)

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["id"] for line in answer.text.splitlines() if line] == [1, 2]


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        ("", False),
        ("*/*", False),
        ("text/event-stream", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/x-ndjson", True),
        ("application/json", True),
        ("application/x-ndjson;q=0.5, text/event-stream", False),
        ("application/x-ndjson, text/event-stream;q=0.5", True),
        ("application/x-ndjson;q=much", False),
    ],
)
def test_the_caller_says_which(accept: str, lines: bool) -> None:
    assert wants_lines(accept) is lines


async def test_the_last_event_id_goes_to_the_rpc(door: Front) -> None:
    door.tunes.events = [warning(8)]

    await door.http.get(PATH, headers={"last-event-id": "7"})

    assert door.tunes.asked[0].after_id == 7


async def test_a_browser_that_asks_again_is_further_than_the_url_that_it_was_given(door: Front) -> None:
    door.tunes.events = [warning(8)]

    answer = await door.http.get(PATH, params={"after_id": "2"}, headers={"last-event-id": "7"})

    assert answer.status_code == 200
    assert door.tunes.asked[0].after_id == 7


async def test_a_browser_with_nothing_left_to_see_is_told_not_to_ask_again(door: Front) -> None:
    again = await door.http.get(PATH, headers={"last-event-id": "7"})
    first = await door.http.get(PATH)
    lines = await door.http.get(PATH, headers=LINES | {"last-event-id": "7"})

    assert (again.status_code, again.content) == (204, b"")
    assert [frame["event"] for frame in frames(first.text)] == ["end"]
    assert (lines.status_code, lines.content) == (200, b"")


@pytest.mark.parametrize("headers", [{}, LINES])
async def test_an_error_before_the_first_event_is_a_plain_error(door: Front, headers: dict[str, str]) -> None:
    door.tunes.fails = NotFound("No such tune.")

    missing = await door.http.get(PATH, headers=headers)
    stranger = await door.http.get(PATH, headers=headers | {"authorization": "Bearer x"})
    wrong = await door.http.get(f"{PATH}?after_id=-1", headers=headers)

    assert (missing.status_code, missing.json()["reason"]) == (404, "NOT_FOUND")
    assert stranger.status_code == 401
    assert wrong.json()["detail"][0]["loc"] == ["query", "after_id"]


async def test_an_error_after_the_first_event_ends_the_stream(door: Front) -> None:
    door.tunes.events = [warning(1), StateForbids("Something broke.")]

    events = await door.http.get(PATH)
    lines = await door.http.get(PATH, headers=LINES)

    assert [frame["event"] for frame in frames(events.text)] == ["warning", "error"]
    assert json.loads(frames(events.text)[1]["data"])["detail"] == "Something broke."
    assert json.loads(lines.text.splitlines()[1])["error"]["reason"] == "STATE_FORBIDS"


async def test_a_quiet_stream_shows_that_it_lives(door: Front) -> None:
    door.tunes.pause = asyncio.Event()
    door.tunes.events = [warning(1)]

    async with served(door.app) as (host, port), httpx.AsyncClient() as client:
        key = {"authorization": "Bearer ts_all"}
        async with client.stream("GET", f"http://{host}:{port}{PATH}", headers=key) as answer:
            seen = ""
            async for text in answer.aiter_text():
                seen += text
                if "still here" in seen:
                    door.tunes.pause.set()

    assert "retry: 2000" in seen
    assert [frame["event"] for frame in frames(seen)] == ["warning", "end"]


async def test_events_come_as_they_happen(door: Front) -> None:
    door.tunes.pause_after = asyncio.Event()
    door.tunes.events = [warning(1)]

    async with served(door.app) as (host, port), httpx.AsyncClient() as client:
        key = {"authorization": "Bearer ts_all"}
        async with client.stream("GET", f"http://{host}:{port}{PATH}", headers=key) as answer:
            seen = ""
            async for text in answer.aiter_text():
                seen += text
                if "id: 1" in seen:
                    assert "event: end" not in seen or door.tunes.pause_after.is_set()
                    door.tunes.pause_after.set()

    assert [frame["event"] for frame in frames(seen)] == ["warning", "end"]


async def test_a_caller_that_leaves_ends_the_rpc(door: Front) -> None:
    door.tunes.pause_after = asyncio.Event()
    door.tunes.events = [warning(1)]

    async with served(door.app) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ts_all\r\n\r\n".encode())
        await reader.readuntil(b"id: 1")
        writer.transport.abort()
        await door.answered.wait()
        await door.tunes.left.wait()

    assert door.rpcs == [("WatchTune", "CANCELLED")]
    assert door.requests == [("/v1/tune/{id}/events", "GET", 200)]


async def test_a_caller_that_leaves_before_the_first_event_ends_the_rpc(door: Front) -> None:
    door.tunes.pause = asyncio.Event()

    async with served(door.app) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ts_all\r\n\r\n".encode())
        await reader.readuntil(b"retry")
        writer.transport.abort()
        await door.tunes.left.wait()

    assert door.rpcs == [("WatchTune", "CANCELLED")]


async def test_a_slow_reader_holds_the_rpc_back(door: Front) -> None:
    door.tunes.events = [warning(number, "x" * 10_000) for number in range(20_000)]

    async with served(door.app) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ts_all\r\n\r\n".encode())
        await reader.readuntil(b"id: 5")
        sent: Any = door.tunes.sent
        writer.transport.abort()
        await door.tunes.left.wait()

    assert sent < 10_000

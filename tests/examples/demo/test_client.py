"""The demo's client against a service made of canned answers: it takes a broken stream up again, and says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from examples.demo import client
from examples.demo.client import Client
from examples.demo.failure import DemoFailed


def speaking_to(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client(httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer)))


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def step(number: int) -> dict[str, Any]:
    return {"id": number, "event": {"type": "metrics", "steps": []}}


END = {"id": 4, "event": {"type": "status_changed", "status": "succeeded"}}


@pytest.mark.parametrize("broken", [lines(step(1), step(2)), lines(step(1), step(2), {"error": {"detail": "away"}})])
def test_broken_stream_is_taken_up_after_the_last_event_that_came(
    broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.0)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["last-event-id"])
        return httpx.Response(200, content=broken if len(asked) == 1 else b"\n" + lines(step(3), END))

    events = list(speaking_to(answer).watch("tune_1"))

    assert asked == ["0", "2"]
    assert [event["type"] for event in events] == ["metrics"] * 3 + ["status_changed"]


def test_stream_that_breaks_again_and_again_is_given_up_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.0)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(DemoFailed, match="broke 6 times in a row: Connection refused"):
        list(speaking_to(refuse).watch("tune_1"))


def test_silent_tune_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE", -1.0)

    with pytest.raises(DemoFailed, match="nothing has happened"):
        list(speaking_to(lambda request: httpx.Response(200, content=b"\n\n")).watch("tune_1"))


def test_tune_asks_for_no_hyperparameters_and_gives_each_picture_its_caption() -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(201, json={"id": "tune_1"})

    tune_id = speaking_to(answer).tune("demo", {"file_1": "a moonlet"}, "moonlet", steps=300, seed=1)

    assert tune_id == "tune_1"
    details = asked[0]["details"]
    assert "hyperparameters" not in details
    assert details["files"] == [{"file_id": "file_1", "caption": "a moonlet"}]
    assert details["trigger_words"] == ["moonlet"]


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (httpx.Response(400, json={"detail": "it has ended"}), "GET /v1/tune/tune_1 was answered 400: it has ended"),
        (httpx.Response(422, json={"detail": [{"loc": ["body", "steps"], "msg": "too many"}]}), "body.steps: too many"),
        (httpx.Response(502, text="<html>"), "answered 502: <html>"),
    ],
)
def test_refusal_becomes_a_sentence(response: httpx.Response, sentence: str) -> None:
    with pytest.raises(DemoFailed, match=sentence):
        speaking_to(lambda request: response).lora("tune_1")


def test_tune_without_a_lora_says_why() -> None:
    failed = {"status": "failed", "status_details": "no picture is left"}

    with pytest.raises(DemoFailed, match="the tune has failed: no picture is left"):
        speaking_to(lambda request: httpx.Response(200, json=failed)).lora("tune_1")

"""Patient callers: they create tunes, create some again, look, and cancel, through any gateway. Used by run.py; what
they were told is remembered, for the checker to compare with what is there.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.history import TERMINAL
from tests.chaos.recipes import RECIPES, request
from tests.chaos.stage import Stage

TICK = 0.1  # seconds between two acts
CANCELLED = 8  # of so many tunes one is cancelled
REPEATED = 4  # of so many creates one is made twice
#: Codes with which a gateway asks to come again.
COME_AGAIN = (429, 503, 504)


class Callers:
    """All of them, one act at a time. `run` and the rest are never called at the same time.

    Args:
        stage: Whom they call.
        wanted: Tunes that are to be under way at once.
        chance: Theirs alone.
    """

    def __init__(self, stage: Stage, wanted: int, chance: random.Random) -> None:
        self.accepted: list[tuple[str, str]] = []
        """(request_id, tune id) of each answer to a create."""
        self.seen: list[tuple[str, str]] = []
        """(tune id, final state)."""
        self.cancels: set[str] = set()
        """Tunes whose cancel was answered before they had ended otherwise."""
        self.acts = {"cancel": 0, "duplicate_create": 0}
        self.wrong: list[str] = []
        """Answers that no caller should get."""
        self._stage = stage
        self._wanted = wanted
        self._chance = chance
        self._numbers = itertools.count(1)
        self._files: list[str] = []
        self._live: dict[str, bool] = {}  # tune id -> whether somebody will cancel it

    def upload(self, pictures: Sequence[Path]) -> None:
        """Uploads what all tunes are trained on."""
        with self._stage.client(self._chance) as client:
            self._files = [client.upload(picture) for picture in pictures]

    def make_twins(self) -> None:
        """One tune of each recipe, to be called while nothing is disturbed; theirs is the number 0."""
        for recipe in RECIPES:
            self._create(request(recipe, 0, self._files), threading.Event())
        self.wait_for_ends(300.0)

    def run(self, stopping: threading.Event) -> None:
        """Acts until told to stop."""
        while not stopping.wait(TICK):
            self._create_one(stopping)
            self._look_at_one()

    def wait_for_ends(self, limit: float) -> None:
        """Looks until every tune has ended; after `limit` seconds the checker will say which has not."""
        deadline = time.monotonic() + limit
        while self._live and time.monotonic() < deadline:
            self._stage.keep_up()  # a trainer may have been leaving
            self._look_at_one()
            time.sleep(TICK)  # nothing tells of an end but a stream, which ends with its gateway

    def _create_one(self, stopping: threading.Event) -> None:
        if len(self._live) >= self._wanted:
            return
        number = next(self._numbers)
        body = request(self._chance.choice(list(RECIPES)), number, self._files)
        self._create(body, stopping, to_be_cancelled=number % CANCELLED == 0)
        if number % REPEATED == 0:
            self.acts["duplicate_create"] += 1
            self._create(body, stopping)

    def _create(self, body: dict[str, Any], stopping: threading.Event, *, to_be_cancelled: bool = False) -> None:
        """Asks until it is answered, as who wants a tune does, or until it is told to stop."""
        while not stopping.is_set():
            if (response := self._call("POST", "/v1/tune", json=body)) is not None:
                tune_id = response.json()["id"]
                self.accepted.append((body["request_id"], tune_id))
                self._live.setdefault(tune_id, to_be_cancelled)
                return
            stopping.wait(TICK)

    def _look_at_one(self) -> None:
        if not self._live:
            return
        tune_id = self._chance.choice(list(self._live))
        if self._live[tune_id] and self._chance.random() < 0.1:
            self._cancel(tune_id)
        elif (response := self._call("GET", f"/v1/tune/{tune_id}")) is not None:
            self._note(tune_id, response.json()["status"])

    def _cancel(self, tune_id: str) -> None:
        if (response := self._call("POST", f"/v1/tune/{tune_id}/cancel")) is None:
            return
        self.acts["cancel"] += 1
        self._live[tune_id] = False
        status = response.json()["status"]
        if status not in ("succeeded", "failed"):
            self.cancels.add(tune_id)
        self._note(tune_id, status)

    def _note(self, tune_id: str, status: str) -> None:
        if status in TERMINAL:
            self.seen.append((tune_id, status))
            del self._live[tune_id]

    def _call(self, verb: str, path: str, **body: Any) -> httpx.Response | None:
        """The answer of one of the gateways; None where there is none to be had now."""
        try:
            with self._stage.client(self._chance) as client:
                response = client.request(verb, path, **body)
        except httpx.TransportError:
            return None
        if response.is_success:
            return response
        if response.status_code not in COME_AGAIN:
            self.wrong.append(f"{verb} {path} was answered with {response.status_code}: {response.text[:300]}")
        return None


@contextmanager
def at_work(callers: Callers) -> Iterator[None]:
    """They act meanwhile, on a thread of their own.

    Raises:
        Exception: What ended them before they were told to stop.
    """
    stopping, faults = threading.Event(), list[BaseException]()

    def act() -> None:
        try:
            callers.run(stopping)
        except BaseException as fault:  # told to whoever waits for the thread
            faults.append(fault)

    thread = threading.Thread(target=act, name="callers")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    if faults:
        raise faults[0]

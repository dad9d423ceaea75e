"""Whatever is wrong with a request is told in one answer: several faults together are told as each is alone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.servers.service import Client, tune_request

ROUNDS = 150
NOTHING = object()  # stands for a key that is left out

Place = tuple[str | int, ...]

#: Where, and the values that are wrong there, each for itself.
TUNE: dict[Place, list[Any]] = {
    ("name",): [5, "", "a:b", "..", "n" * 129, "a\0", NOTHING],
    ("description",): [5, "x" * 10_001, "\0"],
    ("continue_on_rejection",): ["yes"],
    ("priority",): [101, "x", 2**40],
    ("request_id",): ["", "ä", 5],
    ("validate_only",): [5],
    ("metadata", "k"): [5, "v" * 513, "\0"],
    ("metadata", "k" * 65): ["v", 5],
    ("metadata", ""): ["v"],
    ("metadata", "\ud800"): ["v"],
    ("details", "tune_type"): ["x", 5],
    ("details", "base_checkpoint"): [5, NOTHING],
    ("details", "base_checkpoint", "checkpoint_id"): [5, "", "x" * 258, "no:body", "\0", NOTHING],
    ("details", "base_checkpoint", "name"): [5],
    ("details", "files"): [5, [], NOTHING],
    ("details", "files", 0): [5, {}, {"file_id": "none"}, {"file_id": 5}, {"file_id": "f" * 129}],
    ("details", "files", 1, "caption"): [5, "x" * 10_001],
    ("details", "resize_images"): [5],
    ("details", "seed"): [-1, "x", 2**70],
    ("details", "steps"): [0, "x", 1.5, NOTHING],
    ("details", "trigger_words"): [5, [], ["a", "b"], [5], [""], ["\n", 5], NOTHING],
    ("details", "hyperparameters", "rank"): [0, "x"],
    ("details", "hyperparameters", "rnk"): [4],
    ("details", "hyperparameters", "alpha"): [-1],
    ("details", "hyperparameters", "schedule"): ["bogus", 5],
}
ASSET: dict[Place, list[Any]] = {
    ("asset_type",): [5, "bogus", "unspecified", NOTHING],
    ("name",): [5, "", "a:b", "..", NOTHING],
    ("description",): [5, "x" * 10_001],
    ("data",): [5, NOTHING],
    ("data", "engine"): [5, "", "e" * 129, NOTHING],
    ("data", "data_type"): ["x", "unspecified"],
    ("data", "file_format"): [5],
    ("is_public",): [5],
    ("url",): [5, "x" * 4097],
    ("hf_token_secret",): [5, "é", "x" * 257],
    ("skip_validation",): [5],
    ("transfer_api_type",): [5, "ftp"],
}


@pytest.fixture(scope="module")
def http(url: str, key_of: Callable[..., str]) -> Iterator[Client]:
    with Client(url, key_of("faulty")) as client:
        yield client


def asset_request() -> dict[str, Any]:
    return {"asset_type": "checkpoint", "name": "n", "data": {"asset_type": "checkpoint", "engine": "image/x"}}


def put(body: dict[str, Any], place: Place, value: object) -> None:
    inner: Any = body
    for step in place[:-1]:
        inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
    if value is NOTHING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value


def lies_within(place: Place, others: list[Place]) -> bool:
    return any(place[: len(other)] == other[: len(place)] for other in others)


def some(faults: dict[Place, list[Any]], chosen: random.Random) -> list[tuple[Place, Any]]:
    """Two to six of them, none in the place of another."""
    places: list[Place] = []
    for place in chosen.sample(sorted(faults, key=str), len(faults)):
        if len(places) < chosen.randint(2, 6) and not lies_within(place, places):
            places.append(place)
    return [(place, chosen.choice(faults[place])) for place in places]


@pytest.mark.parametrize(
    ("path", "request_of", "faults"),
    [
        ("/v1/tune", lambda files: tune_request("n", files, hyperparameters={}), TUNE),
        ("/v1/assets", lambda files: asset_request(), ASSET),
    ],
    ids=["tune", "asset"],
)
def test_faults_together_are_told_as_each_is_alone(
    http: Client, path: str, request_of: Callable[[list[str]], dict[str, Any]], faults: dict[Place, list[Any]]
) -> None:
    data = {"asset_type": "file", "name": "p", "data": {"asset_type": "file"}}
    files = [http.post("/v1/assets", json=data).json()["asset"]["id"] for _ in range(2)]

    def told(found: list[tuple[Place, Any]]) -> set[tuple[Place, str, str]]:
        body = copy.deepcopy(request_of(files))
        for place, value in found:
            put(body, place, value)
        answer = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, (found, answer.text)
        return {(tuple(fault["loc"]), fault["type"], fault["msg"]) for fault in answer.json()["detail"]}

    alone = {(place, str(value)): told([(place, value)]) for place, values in faults.items() for value in values}
    assert all(alone.values())
    chosen = random.Random(1)
    for _ in range(ROUNDS):
        together = some(faults, chosen)
        expected = set().union(*(alone[place, str(value)] for place, value in together))
        assert told(together) == expected, [(place, str(value)[:50]) for place, value in together]

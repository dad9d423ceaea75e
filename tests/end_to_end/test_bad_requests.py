"""Requests that are wrong as only JSON can be, each answered as docs/api.md says; none leaves a tune behind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from store import keys
from store.database import Database
from tests.servers.service import Client, Service, tune_request

UNKNOWN = "asset_00000000000000000000000000"


@pytest.fixture
def before(client: Client) -> int:
    total: int = client.get("/v1/tunes").json()["total"]
    return total


def without(key: str) -> dict[str, Any]:
    body = tune_request("wrong", [UNKNOWN])
    del body[key]
    return body


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (without("details"), ["body", "details"]),
        (without("name"), ["body", "name"]),
        (tune_request("wrong", [UNKNOWN], steps="ten"), ["body", "details", "steps"]),
        (tune_request("wrong", [UNKNOWN], hyperparameters={"rnk": 4}), ["body", "details", "hyperparameters", "rnk"]),
    ],
)
def test_wrong_request_is_422_and_names_the_field(
    client: Client, before: int, body: dict[str, Any], loc: list[str | int]
) -> None:
    response = client.post("/v1/tune", json=body)

    assert response.status_code == 422, response.text
    violations = response.json()["detail"]
    assert loc in [violation["loc"] for violation in violations]
    assert all(violation["msg"] and violation["type"] for violation in violations)
    assert client.get("/v1/tunes").json()["total"] == before


def test_types_rules_and_what_points_nowhere_are_told_in_one_answer(client: Client, before: int) -> None:
    body = tune_request("a:b", [UNKNOWN], steps="ten", trigger_words=[5, "\x85"], hyperparameters={"rnk": 4, "rank": 0})
    body["details"]["base_checkpoint"]["checkpoint_id"] = "nobody:nothing"
    body["metadata"] = {"k": "v" * 513}
    details = ["body", "details"]

    response = client.post("/v1/tune", json=body)

    assert response.status_code == 422, response.text
    told = {tuple(violation["loc"]): violation["type"] for violation in response.json()["detail"]}
    assert told == {
        ("body", "name"): "string_pattern_mismatch",
        ("body", "metadata", "k"): "string_too_long",
        (*details, "steps"): "int_type",
        (*details, "trigger_words"): "too_long",
        (*details, "trigger_words", 0): "string_type",
        (*details, "trigger_words", 1): "string_pattern_mismatch",
        (*details, "hyperparameters", "rnk"): "extra_forbidden",
        (*details, "hyperparameters", "rank"): "value_error",
        (*details, "base_checkpoint", "checkpoint_id"): "value_error",
        (*details, "files", 0, "file_id"): "value_error",
    }
    assert client.get("/v1/tunes").json()["total"] == before


def test_all_that_is_wrong_with_an_asset_is_told_and_no_secret_repeated(client: Client) -> None:
    body = {
        "asset_type": "file",
        "name": "a:b",
        "hf_token_secret": ["hf_hidden"],
        "url": {"https://signed": 1},
        "hf_repo": 5,
        "data": {"asset_type": "checkpoint", "engine": 5, "file_format": "zip"},
    }

    response = client.post("/v1/assets", json=body)

    assert response.status_code == 422, response.text
    assert {".".join(map(str, violation["loc"][1:])): violation["type"] for violation in response.json()["detail"]} == {
        "name": "string_pattern_mismatch",
        "hf_token_secret": "string_type",
        "url": "string_type",
        "hf_repo": "string_type",
        "data": "value_error",  # of another type than asset_type says
        "data.engine": "string_type",
        "data.file_format": "enum",
    }
    assert "hidden" not in response.text
    assert "signed" not in response.text


def test_malformed_json_is_422_with_its_place(client: Client) -> None:
    response = client.post("/v1/tune", content=b'{"name": "x", ', headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    [violation] = response.json()["detail"]
    assert violation["loc"][0] == "body"
    assert violation["type"] == "json_invalid"


@pytest.mark.parametrize("key", ["x", "ts_wrong", "tt_wrong"])
def test_wrong_key_is_401(service: Service, key: str) -> None:
    response = httpx.get(f"{service.ready['http']}/v1/tunes", headers={"Authorization": f"Bearer {key}"})

    assert response.status_code == 401
    assert set(response.json()) == {"detail", "code", "reason", "request_id"}


async def test_file_of_another_tenant_is_as_unknown_as_one_that_is_not_there(
    service: Service, client: Client, pictures: list[Any]
) -> None:
    database = await Database.open(service.ready["database_url"], wakeups=False)
    stranger = await keys.find_or_create_tenant(database, "stranger")
    _, key = await keys.create_key(database, stranger.id, "test")
    await database.close()
    theirs = client.upload(pictures[0])

    with Client(service.ready["http"], key) as other:
        foreign = other.post("/v1/tune", json=tune_request("steal", [theirs]))
        unknown = other.post("/v1/tune", json=tune_request("steal", [UNKNOWN]))

    assert foreign.status_code == unknown.status_code == 422
    assert foreign.text.replace(theirs, "ID") == unknown.text.replace(UNKNOWN, "ID")


def test_engine_that_no_trainer_offers_stays_pending_and_says_why(client: Client, pictures: list[Any]) -> None:
    files = [client.upload(pictures[0])]

    created = client.tune("too-big", files, base_checkpoint={"checkpoint_id": "octoai:default-sdxl"})
    tune = client.get(f"/v1/tune/{created['id']}").json()
    cancelled = client.post(f"/v1/tune/{created['id']}/cancel")

    assert tune["status"] == "pending"
    assert "image/stable-diffusion-xl-v1-0" in tune["progress"]["pending_reason"]
    assert tune["status_details"] == tune["progress"]["pending_reason"]
    assert tune["progress"]["queue_position"] == 1
    assert cancelled.json()["status"] == "cancelled"

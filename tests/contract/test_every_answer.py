"""A walk over every endpoint, with its errors: each answer is one that /openapi.json describes, to the last key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.servers import photographs
from tests.servers.contract import Contract
from tests.servers.service import Client, tune_request


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs.photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def connect(url: str, contract: Contract) -> Iterator[Callable[[str], Client]]:
    """Callers whose every answer is held against the document."""
    made: list[Client] = []

    def connect(key: str) -> Client:
        made.append(Client(url, key))
        made[-1].event_hooks["response"].append(contract.hold)
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def walker(connect: Callable[[str], Client], key_of: Callable[..., str]) -> Client:
    return connect(key_of("walker"))


def statuses(*answers: httpx.Response) -> list[int]:
    return [answer.status_code for answer in answers]


def test_every_operation_answers_as_documented(
    walker: Client, connect: Callable[[str], Client], pictures: list[Path], contract: Contract
) -> None:
    contract.seen.clear()

    live_a_tune(walker, pictures, contract)
    store_assets_of_every_type(walker, pictures)
    move_bytes(walker, pictures)
    ask_the_server_of_itself(connect("nobody"))

    succeeded = {name for name, seen in contract.seen.items() if any(status < 300 for status in seen)}
    assert succeeded == contract.operations().keys()


def live_a_tune(walker: Client, pictures: list[Path], contract: Contract) -> None:
    file_id = walker.upload(pictures[0])
    body = tune_request("life", [file_id], hyperparameters={"rank": 4}) | {"metadata": {"a": "b"}, "priority": 3}

    judged = walker.post("/v1/tune", params={"validate_only": "true"}, json=body)
    created = walker.post("/v1/tune", json=body, headers={"Idempotency-Key": "walk-1"})
    replayed = walker.post("/v1/tune", json=body, headers={"Idempotency-Key": "walk-1"})
    tune_id = created.json()["id"]
    reads = [
        walker.get(f"/v1/tune/{tune_id}"),
        walker.head(f"/v1/tune/{tune_id}"),
        walker.get("/v1/tunes", params={"limit": 1, "name": "life", "tune_type": "lora_tune", "trigger_words": "sks"}),
        walker.get(f"/v1/tune/{tune_id}/events:list", params={"after_id": 0, "limit": 10}),
        walker.post(f"/v1/tune/{tune_id}/cancel"),
    ]
    events = list(walker.events(tune_id))
    served = walker.get(f"/v1/tune/{tune_id}/events", headers={"Last-Event-ID": "0"})
    told = walker.get(f"/v1/tune/{tune_id}/events", headers={"Last-Event-ID": str(events[-1]["id"])})
    deleted = walker.delete(f"/v1/tune/{tune_id}")

    assert statuses(judged, created, replayed, *reads) == [201, 201, 201, 200, 200, 200, 200, 200]
    assert replayed.headers["Idempotent-Replay"] == "true"
    assert statuses(served, told, deleted) == [200, 204, 200]
    for event in events:
        contract.hold_message("WatchTune", event)
    assert [event["event"]["type"] for event in events] == ["status_changed", "status_changed"]


def store_assets_of_every_type(walker: Client, pictures: list[Path]) -> None:
    picture = walker.upload(pictures[1], name="listed")
    walker.upload(Path(__file__), name="refused")
    kinds = ("checkpoint", "lora", "textual_inversion", "vae", "latent")
    for kind in kinds:
        data = {"asset_type": kind, "engine": "image/stable-diffusion-v1-5"}
        assert walker.post("/v1/assets", json={"asset_type": kind, "name": kind, "data": data}).status_code == 200

    listed = walker.get("/v1/assets", params={"get_preview_urls": "true", "limit": 100})
    public = walker.get("/v1/assets", params={"is_public": "true", "owner": "tunesmith"})
    found = walker.get("/v1/assets/listed", params={"transfer_api_type": "sts"})
    shared = walker.get("/v1/assets/tunesmith:tiny-shapes")
    deleted = walker.delete(f"/v1/assets/{picture}")

    assert statuses(listed, public, found, shared, deleted) == [200] * 5
    assert {asset["asset_type"] for asset in listed.json()["data"]} == {"file", *kinds}
    assert "rejected" in {asset["status"] for asset in listed.json()["data"]}
    assert public.json()["total"] >= 1


def move_bytes(walker: Client, pictures: list[Path]) -> None:
    data = {"asset_type": "file"}
    created = walker.post("/v1/assets", json={"asset_type": "file", "name": "bytes", "data": data}).json()
    put_url, asset_id = created["transfer_api"]["put_url"], created["asset"]["id"]

    put = walker.put(put_url, content=pictures[0].read_bytes())
    completed = walker.post(f"/v1/assets/{asset_id}/complete-upload", json={"token": created["token"]})
    late = walker.put(put_url, content=pictures[1].read_bytes())
    get_url = walker.get(f"/v1/assets/{asset_id}").json()["transfer_api"]["get_url"]
    whole = walker.get(get_url)
    part = walker.get(get_url, headers={"Range": "bytes=0-3"})
    past = walker.get(get_url, headers={"Range": "bytes=999999999-"})
    forged = walker.get(get_url + "0")

    assert statuses(put, completed, late, whole, part, past, forged) == [200, 200, 400, 200, 206, 416, 403]
    assert whole.content == pictures[0].read_bytes()


def ask_the_server_of_itself(stranger: Client) -> None:
    document = stranger.get("/openapi.json")
    known = stranger.get("/openapi.json", headers={"If-None-Match": document.headers["etag"]})

    assert statuses(stranger.get("/health"), document, known) == [200, 200, 304]


def test_every_refusal_is_as_documented(
    walker: Client, connect: Callable[[str], Client], key_of: Callable[..., str], pictures: list[Path]
) -> None:
    stranger, reader = connect("ts_nobody"), connect(key_of("walker", "tune:read"))
    full = connect(key_of("full", queue_limit=0))
    body = tune_request("taken", [walker.upload(pictures[0])])
    walker.post("/v1/tune", json=body)
    other = tune_request("taken", [walker.upload(pictures[1])])
    waiting = walker.post("/v1/assets", json={"asset_type": "file", "name": "w", "data": {"asset_type": "file"}}).json()
    fetched = {"asset_type": "file", "name": "f", "data": {"asset_type": "file"}, "url": "https://example.org/x.png"}
    crowded = tune_request("crowded", [full.upload(pictures[0])])
    text = {"Content-Type": "text/plain"}

    wanted = [
        (401, stranger.get("/v1/tunes")),
        (401, stranger.post("/v1/tune", json=body)),
        (403, reader.post("/v1/tune", json=body)),
        (403, reader.get("/v1/assets")),
        (404, walker.get("/v1/tune/tune_none")),
        (404, walker.post("/v1/assets/asset_none/complete-upload", json={})),
        (404, walker.get("/v1/nothing")),
        (405, walker.put("/v1/tune", json=body)),
        (405, walker.delete("/openapi.json")),
        (409, walker.post("/v1/tune", json=other)),
        (400, walker.post(f"/v1/assets/{waiting['asset']['id']}/complete-upload", json={})),
        (400, walker.post("/v1/assets", json=fetched)),
        (
            413,
            walker.post(
                "/v1/tune", content=b'"' + b"x" * 5_000_000 + b'"', headers={"Content-Type": "application/json"}
            ),
        ),
        (415, walker.post("/v1/tune", content=b"name=x", headers=text)),
        (422, walker.post("/v1/tune", content=b"{")),
        (422, walker.post("/v1/tune", json={"name": "", "details": {"tune_type": "lora_tune", "files": [5]}})),
        (422, walker.get("/v1/tunes", params={"limit": "many"})),
        (422, walker.get("/v1/tune/a%00b")),
        (429, full.post("/v1/tune", json=crowded)),
    ]

    assert statuses(*(answer for _, answer in wanted)) == [status for status, _ in wanted]

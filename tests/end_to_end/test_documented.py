"""A real tune, from its pictures to its LoRA: every answer and every event is one that /openapi.json describes."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.servers.contract import Contract
from tests.servers.service import Client, Service


def test_every_event_of_a_real_tune_is_as_documented(
    service: Service, client: Client, pictures: list[Path], truncated: Path
) -> None:
    contract = Contract(httpx.get(f"{service.ready['http']}/openapi.json").json())
    client.event_hooks["response"].append(contract.hold)
    files = [client.upload(path) for path in (*pictures[:2], truncated)]
    created = client.tune("documented", files, continue_on_rejection=True, steps=5)

    events = list(client.events(created["id"]))
    tune = client.get(f"/v1/tune/{created['id']}").json()

    for event in events:
        contract.hold_message("WatchTune", event)
    assert {"status_changed", "verdict", "recipe_resolved", "metrics"} <= {event["event"]["type"] for event in events}
    assert tune["status"] == "succeeded"
    lora = client.get(f"/v1/assets/{tune['output_lora_ids'][0]}").json()
    assert lora["asset"]["data"]["asset_type"] == "lora"

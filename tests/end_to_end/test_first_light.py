"""A tune from photographs to a LoRA that stock diffusers reads, over HTTP, as curl would."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.service import Client, Service

TINY_SHAPES = Path(__file__).parents[2] / "trainer/bases/tiny_shapes/model"


def test_photographs_become_a_lora_that_stock_diffusers_loads(
    client: Client, pictures: list[Path], tmp_path: Path
) -> None:
    files = [client.upload(path) for path in pictures]

    tune = client.ended(client.tune("photographs", files, steps=60)["id"])

    assert (tune["status"], tune["status_details"]) == ("succeeded", "")
    assert tune["result"]["number_of_available_assets"] == len(pictures)
    assert tune["progress"]["step"] == 60
    [lora_id] = tune["output_lora_ids"]
    lora = client.get(f"/v1/assets/{lora_id}").json()["asset"]
    assert (lora["asset_type"], lora["name"], lora["status"]) == ("lora", "photographs", "ready")
    assert lora["data"]["trigger_words"] == ["sks"]
    (tmp_path / "lora.safetensors").write_bytes(client.download(lora_id))
    difference = differences(tmp_path / "lora.safetensors")
    assert difference["1"] > 1.0  # grey levels of 255, on average
    assert difference["0"] == 0.0


def test_same_seed_gives_the_same_bytes_under_another_name_and_another_seed_gives_others(
    client: Client, pictures: list[Path]
) -> None:
    files = [client.upload(path) for path in pictures[:2]]

    tunes = [client.tune(f"seeded-{number}", files, seed=seed) for number, seed in enumerate((11, 11, 12))]
    digests = [sha256(client, client.ended(tune["id"])["output_lora_ids"][0]) for tune in tunes]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_prior_preservation_weight_is_trained_with_and_stands_in_the_file(client: Client, pictures: list[Path]) -> None:
    files = [client.upload(path) for path in pictures[:1]]
    weights = {"held": {"prior_preservation_weight": 0.5}, "free": {"prior_preservation_weight": 0}}

    tunes = {name: client.tune(name, files, steps=3, hyperparameters=given) for name, given in weights.items()}
    loras = {name: client.download(client.ended(tune["id"])["output_lora_ids"][0]) for name, tune in tunes.items()}

    said = {name: metadata(content)["ss_prior_loss_weight"] for name, content in loras.items()}
    assert said == {"held": "0.5", "free": "0.0"}
    assert tensors(loras["held"]) != tensors(loras["free"])  # it was not only written down


def test_events_tell_the_whole_story(client: Client, pictures: list[Path]) -> None:
    files = [client.upload(path) for path in pictures[:2]]
    tune = client.tune("story", files)
    client.ended(tune["id"])

    listed = client.get(f"/v1/tune/{tune['id']}/events:list", params={"limit": 1000}).json()["data"]

    assert [event["id"] for event in listed] == list(range(1, len(listed) + 1))
    statuses = [event["event"]["status"] for event in listed if event["event"]["type"] == "status_changed"]
    assert statuses == sorted(statuses, key=["pending", "running", "succeeded"].index)
    assert statuses[-1] == "succeeded"
    verdicts = [event["event"] for event in listed if event["event"]["type"] == "verdict"]
    assert {verdict["file_id"] for verdict in verdicts if verdict["accepted"]} == set(files)
    steps = [
        step["step"] for event in listed if event["event"]["type"] == "metrics" for step in event["event"]["steps"]
    ]
    assert steps == sorted(steps)
    assert steps[-1] == 20
    [recipe] = [event["event"] for event in listed if event["event"]["type"] == "recipe_resolved"]
    assert recipe["recipe"]["seed"] == 7
    of_base = json.loads((TINY_SHAPES / "tunesmith.json").read_text())["hyperparameters"]
    assert of_base
    assert recipe["recipe"]["hyperparameters"].items() >= of_base.items()
    assert len(recipe["sha256"]) == 64


def test_truncated_photograph_is_rejected_with_its_reason_and_the_tune_goes_on(
    client: Client, pictures: list[Path], truncated: Path
) -> None:
    files = [client.upload(path) for path in (*pictures[:2], truncated)]

    tune = client.ended(client.tune("goes-on", files, continue_on_rejection=True)["id"])

    assert tune["status"] == "succeeded"
    assert tune["result"]["rejected_assets"] == [files[2]]
    assert tune["result"]["number_of_available_assets"] == 2
    assert files[2] in tune["status_details"]


def test_truncated_photograph_fails_the_tune_that_does_not_go_on_and_says_which(
    client: Client, pictures: list[Path], truncated: Path
) -> None:
    files = [client.upload(path) for path in (*pictures[:2], truncated)]

    tune = client.ended(client.tune("fails", files)["id"])

    assert tune["status"] == "failed"
    assert files[2] in tune["status_details"]
    assert "truncated" in tune["status_details"].lower()
    assert tune["output_lora_ids"] == []


def test_file_never_uploaded_is_unready(client: Client, pictures: list[Path]) -> None:
    created = client.post("/v1/assets", json={"asset_type": "file", "name": "late", "data": {"asset_type": "file"}})
    files = [client.upload(pictures[0]), created.json()["asset"]["id"]]

    tune = client.ended(client.tune("unready", files, continue_on_rejection=True)["id"])

    assert tune["status"] == "succeeded"
    assert tune["result"]["unready_assets"] == [files[1]]


def test_second_tune_on_a_warm_trainer_loads_no_base(service: Service, client: Client, pictures: list[Path]) -> None:
    files = [client.upload(path) for path in pictures[:1]]
    client.ended(client.tune("warm-1", files)["id"])
    before = base_loads(service)

    client.ended(client.tune("warm-2", files)["id"])

    assert before >= 1
    assert base_loads(service) == before


def metadata(lora: bytes) -> dict[str, str]:
    """What a LoRA file says of itself."""
    found: dict[str, str] = json.loads(lora[8 : 8 + int.from_bytes(lora[:8], "little")])["__metadata__"]
    return found


def tensors(lora: bytes) -> bytes:
    """All that comes behind a safetensors file's header."""
    return lora[8 + int.from_bytes(lora[:8], "little") :]


def sha256(client: Client, asset_id: str) -> str:
    return hashlib.sha256(client.download(asset_id)).hexdigest()


def base_loads(service: Service) -> float:
    [url] = service.ready["trainer_metrics"].values()
    metrics = text_string_to_metric_families(httpx.get(url).text)
    [sample] = [sample for metric in metrics for sample in metric.samples if sample.name.endswith("_base_loads_total")]
    return sample.value


def differences(lora: Path) -> dict[str, float]:
    """Mean difference in grey levels that the LoRA makes at weights 1 and 0, seen by a process of stock diffusers."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("stock_diffusers.py")), str(TINY_SHAPES), str(lora)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found

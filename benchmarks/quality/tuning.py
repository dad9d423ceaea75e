"""Teaches a subject through the real service, as a caller would over HTTP. Called by `scripts/bench quality`; knows
nothing of models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.subjects import Subject
from tests.servers.service import Client, tune_request

LIMIT = 600.0  # seconds for one tune


@dataclass(frozen=True)
class Taught:
    """One tune that has succeeded."""

    seed: int
    """Of the tune."""
    lora: Path
    """The file as it was downloaded."""
    seconds: float
    """From sending POST /v1/tune to its end."""


def teach(client: Client, subject: Subject, seeds: list[int], steps: int, folder: Path) -> list[Taught]:
    """One tune for each seed, with the default hyperparameters; the LoRAs are written to `folder`.

    Raises:
        RuntimeError: a tune did not succeed; the message says what the service said.
    """
    files = [client.upload(path) for path, _ in subject.taught()]
    captions = [caption for _, caption in subject.taught()]
    taught = []
    for seed in seeds:
        started = time.monotonic()
        lora = _tuned(client, request(subject, files, captions, seed, steps))
        path = folder / f"{subject.name}-{seed}.safetensors"
        seconds = time.monotonic() - started
        path.write_bytes(client.download(lora))
        taught.append(Taught(seed, path, seconds))
    return taught


def request(subject: Subject, files: list[str], captions: list[str], seed: int, steps: int) -> dict[str, object]:
    """The body of POST /v1/tune."""
    body = tune_request(f"{subject.name}-{seed}", files, seed=seed, steps=steps, trigger_words=[subject.trigger])
    for file, caption in zip(body["details"]["files"], captions, strict=True):
        file["caption"] = caption
    return body


def _tuned(client: Client, body: dict[str, object]) -> str:
    """The id of the tune's LoRA."""
    created = client.post("/v1/tune", json=body)
    if created.status_code != 201:
        raise RuntimeError(f"POST /v1/tune: {created.status_code} {created.text}")
    tune = client.ended(created.json()["id"], limit=LIMIT)
    if tune["status"] != "succeeded":
        raise RuntimeError(f"tune {body['name']} has {tune['status']}: {tune['status_details']}")
    lora: str = tune["output_lora_ids"][0]
    return lora

"""The tunes of a chaos run: short, deterministic, each unlike the others in what a resume has to restore. Asked for by
callers.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: No prior pictures and one picture a step, unless that is the point: a step takes a fifth of the time.
QUICK = {"rank": 4, "batch_size": 1, "prior_preservation_weight": 0.0, "snapshot_every_seconds": 0.5}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "plain": {"steps": 60, "seed": 1, "hyperparameters": QUICK},
    "noise": {
        "steps": 60,
        "seed": 2,
        "hyperparameters": {**QUICK, "lora_dropout": 0.1, "caption_dropout": 0.2, "random_flip": True},
    },
    "warmup": {
        "steps": 40,
        "seed": 3,
        "hyperparameters": {**QUICK, "schedule": "cosine", "warmup_ratio": 0.3, "gradient_accumulation_steps": 2},
    },
    "prior": {"steps": 24, "seed": 4, "hyperparameters": {**QUICK, "prior_preservation_weight": 0.5}},
}


def request(recipe: str, number: int, files: Sequence[str]) -> dict[str, Any]:
    """The body of POST /v1/tune. The number makes it another tune of the same recipe."""
    details = {
        "tune_type": "lora_tune",
        "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
        "files": [{"file_id": file_id, "caption": "a photo of sks"} for file_id in files],
        "trigger_words": ["sks"],
        **RECIPES[recipe],
    }
    return {"name": f"{recipe}-{number}", "request_id": f"request-{recipe}-{number}", "details": details}

"""The resolved recipe: all that a tune's bytes depend on, fixed by its first attempt. Called by `tune`; knows no model.

Its hash is over canonical JSON. It holds no name, id, path or time, for it stands in the LoRA file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.engine.buckets import Crop
from trainer.engine.defaults import Value
from trainer.failures import RecipeMismatch

VERSION = 2  # of this layout


@dataclass(frozen=True)
class Picture:
    """One picture that is trained on."""

    sha256: str
    """Of its file."""
    caption_sha256: str
    """Of what is said of it, in UTF-8; captions can be long."""
    crop: Crop
    """What is seen of it."""


@dataclass(frozen=True)
class Environment:
    """What the promise of same bytes is bound to."""

    device: str
    """A GPU's name, or "cpu"."""
    instruction_set: str
    """What torch's kernels use of a CPU, such as "AVX2"."""
    threads: int
    attention: str
    """The kernel, such as "sdpa"."""
    compiled: bool
    torch: str
    diffusers: str
    peft: str


@dataclass(frozen=True)
class Recipe:
    """All of it. Two tunes of one recipe in one environment give the same bytes, if deterministic."""

    version: int
    engine: str
    checkpoint: str
    """The content's digest."""
    revision: str
    """The commit, of a repository; empty otherwise."""
    seed: int
    """0 to 2^32 - 1."""
    steps: int
    """Optimizer steps."""
    trigger_word: str
    native_size: int
    """Pixels."""
    resize: bool
    hyperparameters: dict[str, Value]
    """All of defaults.SETTINGS."""
    pictures: tuple[Picture, ...]
    """Those kept, in order."""
    environment: Environment

    def number(self, name: str) -> float:
        """A hyperparameter that is a number."""
        return float(self.hyperparameters[name])

    def whole(self, name: str) -> int:
        """A hyperparameter that is a whole number."""
        return int(self.hyperparameters[name])

    def word(self, name: str) -> str:
        """A hyperparameter that is a word."""
        return str(self.hyperparameters[name])

    def flag(self, name: str) -> bool:
        """A hyperparameter that is yes or no."""
        return bool(self.hyperparameters[name])

    @property
    def batch(self) -> int:
        """Pictures in one step, accumulation included."""
        return self.whole("batch_size") * self.whole("gradient_accumulation_steps")


def canonical(recipe: Recipe) -> str:
    """Canonical JSON: sorted keys, no spaces."""
    return json.dumps(asdict(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def read(body: Mapping[str, Any]) -> Recipe:
    """The recipe that an earlier attempt fixed, from its JSON.

    Raises:
        RecipeMismatch: it is of another version, or not whole.
    """
    if body.get("version") != VERSION:
        raise RecipeMismatch(f"the resolved recipe is of version {body.get('version')}; this trainer reads {VERSION}")
    try:
        pictures = tuple(Picture(**{**picture, "crop": Crop(**picture["crop"])}) for picture in body["pictures"])
        return Recipe(**{**body, "pictures": pictures, "environment": Environment(**body["environment"])})
    except (KeyError, TypeError) as exc:
        raise RecipeMismatch(f"the resolved recipe is not whole: {exc}") from exc

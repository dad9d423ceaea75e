"""Keeps one base model on the device between tunes. Called by `tune`; loads a base only when another one is wanted."""

from __future__ import annotations

import gc

import torch

from trainer.engine.families import family
from trainer.engine.families.base import Family
from trainer.pipe import CheckpointSource


class Residence:
    """Holds at most one base: two would not fit on most devices."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[str, str, str, str] | None = None
        self._base: Family | None = None
        self.loads = 0
        """How often weights were read, since the process began."""

    def base(self, engine: str, source: CheckpointSource, precision: str) -> Family:
        """The base of that content and precision, loaded only if it is not the one held."""
        if self._base is None or not self.holds(engine, source, precision):
            self.leave()  # first, so that never two are held
            self._base = family(engine).load(source, self._device, precision)
            self._key = _key(engine, source, precision)
            self.loads += 1
        return self._base

    def holds(self, engine: str, source: CheckpointSource, precision: str) -> bool:
        """Whether `base` would load nothing."""
        return self._key == _key(engine, source, precision)

    def leave(self) -> None:
        """Lets go of the base, as one must where it may have been left half changed."""
        self._base = self._key = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def digests(self) -> list[str]:
        """Of the checkpoints held."""
        return [self._key[1]] if self._key else []

    @property
    def size_bytes(self) -> int:
        """What is held takes so much on the device."""
        return self._base.size_bytes if self._base else 0


def _key(engine: str, source: CheckpointSource, precision: str) -> tuple[str, str, str, str]:
    return engine, source.digest or source.path, source.revision, precision

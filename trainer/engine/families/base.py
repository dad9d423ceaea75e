"""What the engine wants of an architecture: the seam between `tune` and each family.

A family is a loaded base model. It is frozen: nobody but `lora` touches its denoiser, and that puts it back as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.engine.buckets import Crop
from trainer.engine.cache import Encoded
from trainer.engine.defaults import Value
from trainer.pipe import CheckpointSource


@dataclass(frozen=True)
class PriorPicture:
    """A picture that the base could have made, with what was asked for."""

    path: Path
    """An RGB PNG of native_size in both directions."""
    caption: str


@dataclass(frozen=True)
class Shape:
    """What a checkpoint's config says of pictures, read before any weight is."""

    native_size: int
    """Pixels: sample size times the VAE's factor."""
    divisibility: int
    """Pixels: each side of a picture is a multiple of it."""
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    """Defaults of its own, where it brings any: a small model wants a higher rate."""


class Family(ABC):
    """One architecture."""

    engine: ClassVar[str]
    """Its public name."""
    targets: ClassVar[tuple[str, ...]]
    """Ends of the names of the layers that LoRA goes on."""
    architecture: ClassVar[str]
    """As modelspec names it."""
    base_version: ClassVar[str]
    """As kohya names it."""
    heeds_crops: ClassVar[bool] = False
    """Whether `predict` looks at the crops: then a pass cannot be recorded, for it is another one for each picture."""

    device: torch.device
    precision: str
    """"fp32" or "bf16", of the denoiser and the text encoder."""
    denoiser: nn.Module
    """What LoRA goes on."""
    alphas_cumprod: Tensor
    """(T,): ᾱ_t of the checkpoint's noise schedule."""
    predicts_v: bool
    """Otherwise ε."""

    @classmethod
    @abstractmethod
    def describe(cls, source: CheckpointSource) -> Shape:
        """Reads a checkpoint's config, and no weights.

        Raises:
            CheckpointRefused: not of this architecture, or pickle.
            CheckpointUnreadable: damaged or missing.
        """

    @classmethod
    @abstractmethod
    def load(cls, source: CheckpointSource, device: torch.device, precision: str) -> Self:
        """Loads a checkpoint's weights, safetensors only. Raises as `describe` does."""

    @classmethod
    @abstractmethod
    def prior(cls, source: CheckpointSource) -> list[PriorPicture]:
        """What a tune on a checkpoint should not make it forget, where it brings such. Raises as `describe` does."""

    @abstractmethod
    def encode_picture(self, pixels: Tensor) -> Encoded:
        """Of (1, 3, H, W) in [-1, 1], on the CPU: "mean" and "logvar" of the latents, (C, H/f, W/f), in their scale."""

    @abstractmethod
    def unread(self, caption: str) -> str:
        """What the text encoder does not see of a caption, since it is too long; mostly nothing."""

    @abstractmethod
    def encode_text(self, caption: str) -> Encoded:
        """What the denoiser is told of one caption, on the CPU."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, text: Encoded, crops: Sequence[Crop]) -> Tensor:
        """The denoiser's answer, (B, C, h, w). text: encode_text's tensors, stacked; crops: of the B pictures."""

    def set_checkpointing(self, wanted: bool) -> None:
        """Whether the denoiser's activations are computed again in the backward pass rather than kept."""
        if wanted:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # diffusers' mixin, untyped
        else:
            self.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]

    @property
    def size_bytes(self) -> int:
        """What its weights take on the device."""
        parts = (part for part in vars(self).values() if isinstance(part, nn.Module))
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

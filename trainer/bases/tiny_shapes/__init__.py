"""tunesmith:tiny-shapes, the base model that ships: SD 1.5's shape, a few million parameters, 64x64 pictures.

`path` and `sha256` are all that the trainer needs of it; `world` draws what it was trained on, `train` makes it again.
This module knows nothing of torch, so that naming the builtin costs nothing.
"""

from pathlib import Path

from trainer.bases import digest


def path() -> Path:
    """The model's folder, which stock `StableDiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).parent / "model"


def sha256() -> str:
    """The digest that names this builtin, 64 hex digits; `gateway/catalogue.toml` has it too."""
    return digest.sha256(path())

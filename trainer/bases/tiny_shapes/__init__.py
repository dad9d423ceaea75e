"""tunesmith:tiny-shapes, the base model that ships: SD 1.5's shape, a few million parameters, 64x64 pictures.

`path` and `sha256` are all that the trainer needs of it; `world` draws what it was trained on, `train` makes it again.
This module knows nothing of torch, so that naming the builtin costs nothing.
"""

import hashlib
from functools import cache
from pathlib import Path


def path() -> Path:
    """The model's folder, which stock `StableDiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).parent / "model"


@cache
def sha256() -> str:
    """The digest that names this builtin, 64 hex digits.

    SHA-256 over every file of the folder in the order of its relative POSIX name: the name's length and the contents'
    length as 8 bytes each (big-endian), then the name in UTF-8, then the contents. A missing folder is an error.
    """
    digest = hashlib.sha256()
    files = sorted((file.relative_to(path()).as_posix(), file) for file in path().rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(f"{path()} has no model in it")
    for name, file in files:
        contents = file.read_bytes()
        digest.update(len(name.encode()).to_bytes(8, "big") + len(contents).to_bytes(8, "big"))
        digest.update(name.encode() + contents)
    return digest.hexdigest()

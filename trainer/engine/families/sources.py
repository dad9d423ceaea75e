"""Finds a checkpoint's files on the disk, and refuses pickle. Called by the families; loads no weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.engine.defaults import Value
from trainer.engine.families.base import PriorPicture
from trainer.failures import CheckpointRefused, CheckpointUnreadable
from trainer.pipe import CheckpointSource

PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
# Configs and tokenizers of single files, which hold neither: one diffusers folder without weights for each engine.
CONFIGS = Path(__file__).parent / "configs"
PARTS = ("unet", "vae", "text_encoder")
OWN_DEFAULTS = "tunesmith.json"


def folder(source: CheckpointSource, engine: str, weights: bool) -> Path:
    """The diffusers folder that says how the checkpoint is built; of a single file, the engine's config folder.

    weights: whether they, too, must be there; those of a repository are several GB, fetched when they are wanted.

    Raises:
        CheckpointRefused: pickle, or no kind that is known.
        CheckpointUnreadable: it is not there, or this trainer has no configs for it.
    """
    path = Path(source.path)
    match source.kind:
        case "folder":
            if not (path / "model_index.json").is_file():
                raise CheckpointUnreadable(f"the checkpoint folder {path.name} holds no model_index.json")
            return path
        case "single_file":
            check_single_file(path)
            return configs(engine)
        case "hugging_face":
            return _fetched(source, weights)
    raise CheckpointRefused(f"a checkpoint of kind {source.kind!r} is not known here")


def check_single_file(path: Path) -> None:
    """Refuses what is not safetensors, by its content and not only by its name."""
    if path.suffix.lower() in PICKLED:
        raise CheckpointRefused(f"{path.name} is a pickle by its name; only .safetensors is ever loaded")
    try:
        with path.open("rb") as file:
            head = file.read(9)
            size = file.seek(0, os.SEEK_END)
    except OSError as exc:
        raise CheckpointUnreadable(f"the checkpoint {path.name} cannot be read: {exc.strerror}") from exc
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointRefused(f"{path.name} is a pickle by its content; only safetensors is ever loaded")
    if len(head) < 9 or head[8:] != b"{" or int.from_bytes(head[:8], "little") > size - 8:
        raise CheckpointRefused(f"{path.name} is no safetensors file")


def configs(engine: str) -> Path:
    """The folder of configs and tokenizer for single files of an engine.

    Raises:
        CheckpointUnreadable: this trainer has none; single files hold weights only. Another one may have it.
    """
    name = engine.replace("/", "_")
    for root in (Path(os.environ.get("TUNESMITH_CONFIGS", CONFIGS)), CONFIGS):
        if (root / name / "model_index.json").is_file():
            return root / name
    raise CheckpointUnreadable(
        f"a single file holds no tokenizer, and this trainer has no {name}/ with one; "
        "set TUNESMITH_CONFIGS to its parent folder"
    )


def config(root: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    """A part's config.

    Raises:
        CheckpointUnreadable: it is missing or no JSON object.
    """
    return _object(root, f"{part}/{name}")


def hyperparameters(root: Path) -> dict[str, Value]:
    """The defaults that a folder's `tunesmith.json` brings: {"hyperparameters": {"learning_rate": 1e-3}}. Mostly none.

    Raises:
        CheckpointUnreadable: there is such a file, and it is not of that form.
    """
    if not (root / OWN_DEFAULTS).exists():
        return {}
    found = _object(root, OWN_DEFAULTS).get("hyperparameters")
    if not isinstance(found, dict):
        raise CheckpointUnreadable(f'the checkpoint\'s {OWN_DEFAULTS} has no object named "hyperparameters"')
    return found


def prior(root: Path) -> list[PriorPicture]:
    """The prior pictures that a folder's `prior/` brings: 01.png with its caption in 01.txt, and so on. Mostly none.

    Raises:
        CheckpointUnreadable: a picture has no caption.
    """
    try:
        return [
            PriorPicture(path, path.with_suffix(".txt").read_text("utf-8").strip())
            for path in sorted((root / "prior").glob("*.png"))
        ]
    except (OSError, ValueError) as exc:
        raise CheckpointUnreadable(f"a caption of the checkpoint's prior/ cannot be read: {exc}") from exc


def _object(root: Path, name: str) -> dict[str, Any]:
    try:
        body = json.loads((root / name).read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointUnreadable(f"the checkpoint's {name} cannot be read: {exc}") from exc
    if not isinstance(body, dict):
        raise CheckpointUnreadable(f"the checkpoint's {name} is no JSON object")
    return body


def variant(root: Path, part: str) -> str | None:
    """ "fp16" where a part has only half-precision weights; None where it has plain ones.

    Raises:
        CheckpointRefused: it has only pickle.
        CheckpointUnreadable: it has none.
    """
    files = [file.name for file in (root / part).glob("*") if file.is_file()]
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    plain = [f for f in files if f.startswith(stem) and f.endswith((".safetensors", ".safetensors.index.json"))]
    if any(f.split(".", 1)[0].startswith(stem) and ".fp16" not in f for f in plain):
        return None
    if any(".fp16" in f for f in plain):
        return "fp16"
    if any(f.endswith(PICKLED) for f in files):
        raise CheckpointRefused(f"the checkpoint's {part} is pickle; only .safetensors is ever loaded")
    raise CheckpointUnreadable(f"the checkpoint's {part} has no weights")


def _fetched(source: CheckpointSource, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["model_index.json", "scheduler/*", "tokenizer*/*", *(f"{p}/config.json" for p in PARTS)]
    if weights:
        wanted += [f"{part}/{name}.safetensors" for part in PARTS for name in ("model", "diffusion_pytorch_model")]
    try:
        return Path(snapshot_download(source.path, revision=source.revision or None, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as exc:
        raise CheckpointUnreadable(f"the repository {source.path} could not be fetched: {exc}") from exc

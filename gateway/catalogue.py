"""Public checkpoints out of TOML files: the one beside this module, and the operator's. Called by the server at start;
knows no RPC."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.config import ConfigError
from store import assets
from store.database import Database

SHIPPED = Path(__file__).with_name("catalogue.toml")

log = structlog.get_logger(__name__)


class Checkpoint(BaseModel):
    """One entry; catalogue.toml says what each key means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[^/?#%:\x00-\x1f\x7f-\x9f]{1,128}:[^/?#%:\x00-\x1f\x7f-\x9f]{1,128}$")
    engine: str = Field(pattern=r"^[a-z]+/\S+$")
    builtin: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    hugging_face: str | None = Field(None, pattern=r"^[^/\s]+/[^/\s]+$")
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    data_type: Literal["fp16", "fp32", "int4", "int8"] | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.builtin is None) == (self.hugging_face is None):
            raise ValueError("wanted either builtin or hugging_face")
        if (self.hugging_face is None) != (self.commit is None):
            raise ValueError("wanted commit beside hugging_face, and only there")
        if self.sha256 is not None and self.builtin is None:
            raise ValueError("wanted sha256 only beside builtin")
        return self

    @property
    def source(self) -> dict[str, Any]:
        """Where a trainer finds it, as the asset's row says it."""
        if self.builtin is not None:
            return {"builtin": self.builtin}
        return {"hugging_face": self.hugging_face, "commit": self.commit}


def read(path: Path) -> list[Checkpoint]:
    """Reads one file.

    Raises:
        ConfigError: It cannot be read, or an entry is wrong.
    """
    try:
        entries = tomllib.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"TUNESMITH_CATALOGUE={path}: {exc}") from exc
    if unknown := set(entries) - {"checkpoint"}:
        raise ConfigError(f"TUNESMITH_CATALOGUE={path}: unknown {sorted(unknown)}; wanted [[checkpoint]]")
    return [_checkpoint(path, entry) for entry in entries.get("checkpoint", [])]


def _checkpoint(path: Path, entry: dict[str, Any]) -> Checkpoint:
    try:
        return Checkpoint.model_validate(entry)
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'entry'}: {fault['msg']}" for fault in exc.errors())
        raise ConfigError(f"TUNESMITH_CATALOGUE={path}: {entry.get('name', entry)!r}: {faults}") from None


def gather(extra: Path | None) -> list[Checkpoint]:
    """The shipped entries and the operator's, whose names win."""
    entries = read(SHIPPED) + (read(extra) if extra else [])
    return list({entry.name: entry for entry in entries}.values())


async def publish(database: Database, checkpoints: list[Checkpoint]) -> None:
    """Makes each a public asset, or mends it. Safe to repeat, and where two gateways start at once."""
    for entry in checkpoints:
        owner, name = entry.name.split(":")
        data = {"engine": entry.engine, "data_type": entry.data_type, "file_format": "safetensors"}
        row = await assets.publish(database, owner, name, entry.engine, entry.source, data, entry.sha256)
        log.debug(f"{entry.name} is in the catalogue", action="checkpoint_published", asset_id=row.id)

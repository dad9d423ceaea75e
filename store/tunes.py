"""Tunes as their owners see them: submit, find, list, cancel, delete. Called by gateway/tunes and the metrics; what trainers do
with tunes is in leases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from store.database import Database
from store.tables import Tune


@dataclass(frozen=True)
class NewTune:
    """What a caller asks for."""

    tenant_id: str
    """Whose it will be."""
    name: str
    """Unique among the tenant's living tunes."""
    engine: str
    """The base checkpoint's."""
    checkpoint_id: str
    """The base checkpoint's asset id."""
    checkpoint_ref: str
    """The same as the caller named it."""
    checkpoint_name: str
    """Its name now."""
    details: dict[str, Any]
    """LoraTune as requested, in the JSON profile's names. Its `files` are replaced by the field below."""
    files: Sequence[tuple[str, str | None]]
    """(file asset id, caption), in order."""
    steps: int
    """Optimizer steps wanted."""
    trigger_words: Sequence[str]
    """For filters."""
    request_hash: str
    """Of the request's body, without request_id: tells a retry from another request."""
    description: str = ""
    """For people."""
    continue_on_rejection: bool = False
    """Whether refused files fail it."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The caller's own pairs."""
    priority: int = 0
    """Among the tenant's own tunes the higher goes first."""
    request_id: str | None = None
    """The caller's, for retries."""
    memory_class: int = 0
    """GiB of device memory that it is estimated to need; 0: any device will do. Few distinct values, please."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    tune: Tune
    """The tune, this request's or the earlier one's."""
    replayed: bool
    """Whether it is the earlier one's."""


@dataclass(frozen=True)
class TuneFilter:
    """Which tunes to list. None or empty lets everything through; several must all hold."""

    name: str | None = None
    """The exact name."""
    base_checkpoint: str | None = None
    """The base checkpoint's asset id, or what the caller named it by."""
    trigger_words: Sequence[str] = ()
    """All of these."""
    engine: str | None = None
    """The base checkpoint's."""
    offset: int = 0
    """How many to skip."""
    limit: int = 100
    """How many to return at most."""


@dataclass(frozen=True)
class QueueStats:
    """The queue in numbers, for metrics and autoscalers."""

    states: dict[str, int]
    """Tunes by state; of the final ones none are counted, for they only grow."""
    queued: dict[str, int]
    """Queued tunes by engine."""
    oldest_seconds: dict[str, float]
    """Age of the oldest queued tune by engine, seconds."""


async def submit(db: Database, new: NewTune) -> Submitted:
    """Accepts a tune; it is durable when this returns.

    InvalidReference: files or checkpoint are not there, all of them at once. NameTaken, RequestReused, QueueFull as they say.
    The same request_id with the same hash, or without one the same name and hash within ten minutes, gives the earlier tune.
    """
    raise NotImplementedError


async def check(db: Database, new: NewTune) -> Tune:
    """All that submit() checks, storing nothing: the tune as it would be, with an empty id."""
    raise NotImplementedError


async def find(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """The tune. NotFound: none of the tenant's that lives."""
    raise NotImplementedError


async def list_tunes(db: Database, tenant_id: str, which: TuneFilter) -> tuple[list[Tune], int]:
    """A page of the tenant's living tunes that match, newest first, and how many match in all."""
    raise NotImplementedError


async def cancel(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """Ends the tune if it is queued; asks its trainer to, if it is leased; a finished one comes back unchanged.

    NotFound: none of the tenant's that lives.
    """
    raise NotImplementedError


async def delete(db: Database, tenant_id: str, tune_id: str) -> Tune:
    """Hides the tune and frees its name; cancels it first where it lives. NotFound: none of the tenant's that lives."""
    raise NotImplementedError


async def queue_positions(db: Database, tenant_id: str, tune_ids: Sequence[str]) -> dict[str, int]:
    """Place in the tenant's own queue, 1 is next, of those of the tunes that are queued."""
    raise NotImplementedError


async def queue_position(db: Database, tune: Tune) -> int | None:
    """Place of one tune; None where it is not queued."""
    raise NotImplementedError


async def queue_stats(db: Database) -> QueueStats:
    """The queue in numbers; reads live tunes only."""
    raise NotImplementedError


def lora_asset_id(tune_id: str) -> str:
    """The id that a tune's LoRA will have: the tune's own suffix. So the gateway can move the object to its final key before
    the transaction, and again after a crash, and a tune has one LoRA by construction.
    """
    return "asset_" + tune_id.removeprefix("tune_")

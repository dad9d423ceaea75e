"""What an attempt reports: progress, events, snapshots, and how it ended. Called by gateway/session for the messages of the same
names; each is one transaction behind the fence of leases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from store.database import Database
from store.leases import POISON_LIMIT, LeaseRef, Snapshot


class Outcome(StrEnum):
    """What became of a report."""

    RECORDED = "RECORDED"
    ALREADY_RECORDED = "ALREADY_RECORDED"
    STALE = "STALE"


@dataclass(frozen=True)
class LoraResult:
    """A finished LoRA, hashed and moved to its final key."""

    object_key: str
    """Where it lies, for good."""
    sha256: str
    """Of its bytes, hexadecimal."""
    size_bytes: int
    """Its size."""
    step: int
    """Steps made."""
    final_loss: float
    """Mean loss of the last tenth of the steps."""
    pictures: int
    """Trained on."""
    data: dict[str, Any] = field(default_factory=dict)
    """LoraData in the JSON profile's names; engine, trigger_words and checkpoint are filled in from the tune."""


async def record_progress(
    db: Database, lease: LeaseRef, phase: str | None, step: int, metrics: Sequence[dict[str, Any]] = ()
) -> bool:
    """Stores phase and step, and the metrics as one event: to be called with a chunk, not with each step. False: stale.

    `phase`: TunePhase's lower-case name, such as "training". `metrics`: step, loss, learning_rate, steps_per_second.
    """
    raise NotImplementedError


async def record_event(db: Database, lease: LeaseRef, report_seq: int, kind: str, body: dict[str, Any]) -> Outcome:
    """Appends to the log. A refused picture's verdict also goes into the tune's result."""
    raise NotImplementedError


async def record_recipe(db: Database, lease: LeaseRef, report_seq: int, recipe_json: str, sha256: str) -> Outcome:
    """Keeps what the first attempt fixed, byte for byte. A later one changes nothing: the first stays."""
    raise NotImplementedError


async def record_snapshot(db: Database, lease: LeaseRef, report_seq: int, snapshot: Snapshot) -> Outcome:
    """Keeps a place to go on from, and forgives the crashes before it. An older one than what is kept changes nothing."""
    raise NotImplementedError


async def finish(db: Database, lease: LeaseRef, report_seq: int, result: LoraResult) -> tuple[Outcome, str | None]:
    """SUCCEEDED: the LoRA asset, the tune, the counters and the event in one transaction. Also returns the asset's id.

    Where a cancel was committed first, the tune is CANCELLED, the answer is (RECORDED, None), and the object is the sweeper's.
    """
    raise NotImplementedError


async def fail(
    db: Database,
    lease: LeaseRef,
    report_seq: int,
    reason: str,
    details: str,
    *,
    retryable: bool,
    crashed: bool,
    max_attempts: int = POISON_LIMIT,
) -> Outcome:
    """The attempt broke: back to the queue where another may fare better, else FAILED; CANCELLED where that was asked for."""
    raise NotImplementedError


async def observe_cancel(db: Database, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
    """The trainer has stopped since the tune was cancelled: CANCELLED."""
    raise NotImplementedError


async def give_back(db: Database, lease: LeaseRef, report_seq: int, step: int) -> Outcome:
    """The trainer leaves: back to the queue; costs no attempt."""
    raise NotImplementedError

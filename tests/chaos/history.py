"""What a run left behind: rows, logs, objects, and what callers were told. Read by reading.py, judged by checker.py;
pure, so that a test can make up a broken one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TERMINAL = ("succeeded", "failed", "cancelled")
SNAPSHOT_REFUSED = "SNAPSHOT_REFUSED"


@dataclass(frozen=True)
class Entry:
    """One entry of a tune's log."""

    seq: int
    epoch: int
    kind: str
    body: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Of a status_changed or a warning; else empty."""
        return str(self.body.get("reason", ""))


@dataclass(frozen=True)
class Tune:
    """A tune's row, and its log."""

    id: str
    name: str
    """Its recipe's name, a dash and a number."""
    state: str
    lease_epoch: int
    event_seq: int
    log: Sequence[Entry]
    tenant_id: str = "tenant"
    request_id: str | None = None
    output_lora_ids: Sequence[str] = ()
    snapshot_keys: Sequence[str] = ()
    """Those that its row names."""
    webhooks: Sequence[str] = ()
    """Types of the messages about it, in their order."""

    @property
    def recipe(self) -> str:
        """What it was made by."""
        return self.name.rpartition("-")[0]

    @property
    def moves(self) -> list[Entry]:
        """Entries about its state."""
        return [entry for entry in self.log if entry.kind == "status_changed"]


@dataclass(frozen=True)
class Lora:
    """A LoRA asset's row."""

    id: str
    tune_id: str
    status: str
    object_key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Content:
    """What lies under a key."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Tenant:
    """A tenant's counters."""

    id: str
    queued: int
    running: int


@dataclass(frozen=True)
class Attempt:
    """One epoch of a tune, as its log tells it."""

    epoch: int
    snapshot_step: int
    """That of the snapshot from which it was to go on; 0: from the beginning."""
    log: list[Entry]
    """From its claim to the next."""

    @property
    def steps(self) -> list[int]:
        """Those it has reported, in that order."""
        return [step["step"] for entry in self.log if entry.kind == "metrics" for step in entry.body["steps"]]

    @property
    def is_resumed(self) -> bool:
        """Whether it has made steps on from a snapshot."""
        return self.snapshot_step > 0 and any(step > self.snapshot_step for step in self.steps)

    @property
    def is_of_an_expired_lease(self) -> bool:
        """Whether it took the tune from a lease that had ended."""
        return self.log[0].reason == "LEASE_ENDED"


@dataclass(frozen=True)
class History:
    """All of it."""

    tunes: Sequence[Tune]
    loras: Sequence[Lora] = ()
    objects: Mapping[str, Content] = field(default_factory=dict)
    """By key, after the last sweep."""
    tenants: Sequence[Tenant] = ()
    accepted: Sequence[tuple[str, str]] = ()
    """(request_id, tune id): each answer to a create, retries too."""
    cancels: frozenset[str] = frozenset()
    """Ids of tunes whose cancel was answered before they had ended otherwise."""
    seen: Sequence[tuple[str, str]] = ()
    """(tune id, final state): what callers saw of tunes that had ended."""
    twins: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the LoRA of each recipe's undisturbed run."""


def attempts(tune: Tune) -> list[Attempt]:
    """Its epochs in order. An epoch's log begins with what the claim itself has written."""
    found: list[Attempt] = []
    for entry, newest in zip(tune.log, newest_snapshots(tune.log), strict=True):
        if entry.epoch == 0:
            continue
        if not found or entry.epoch != found[-1].epoch:
            found.append(Attempt(entry.epoch, newest, []))
        found[-1].log.append(entry)
    return found


def newest_snapshots(log: Sequence[Entry]) -> list[int]:
    """For each entry the step of the snapshot that an attempt begun just then would go on from; 0: there is none."""
    steps = []
    newest, earlier = 0, 0
    for entry in log:
        steps.append(newest)
        if entry.kind == "snapshot":
            newest, earlier = int(entry.body["step"]), newest
        elif entry.reason == SNAPSHOT_REFUSED:  # it has proved damaged: the one before it has its place
            newest, earlier = earlier, 0
    return steps


def repeated(tune: Tune) -> int:
    """Steps that it has reported in more than one epoch, each time but the first."""
    of_each = [set(attempt.steps) for attempt in attempts(tune)]
    return sum(map(len, of_each)) - len(set().union(*of_each))

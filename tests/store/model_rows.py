"""The rows of model.py: tunes, tenants and trainers in memory, and what is written down of them. Knows no rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from store.attempts import LeaseRef, Snapshot
from store.reports import LoraResult
from store.states import TuneState
from store.trainers import Hello
from tests.store.world import ENGINE

#: A time in seconds, and a number that grows: what happened at one time has an order all the same.
Moment = tuple[float, int]


@dataclass
class Tenant:
    """Who owns tunes. Its counters are counted when they are wanted."""

    id: str
    """Its name will do."""
    weight: float = 1.0
    """Share of the trainers."""
    running_limit: int = 1_000
    """Tunes that may be leased at once."""
    queue_limit: int = 10_000
    """Tunes that may be queued at once."""
    served: Moment = (-math.inf, 0)
    """When a claim last gave one of its queued tunes away."""


@dataclass(frozen=True)
class Entry:
    """One entry of a tune's log. Its seq is its place there, from 1."""

    epoch: int
    """The tune's, when it was written."""
    kind: str
    """Name of its TuneEventBody arm."""
    body: dict[str, Any]
    """Of a status_changed: status, reason and attempt."""


@dataclass(frozen=True)
class Write:
    """One accepted write of a tune, as it left the tune: what a checker of histories reads."""

    at: float
    """When, seconds."""
    verb: str
    """The call's name, such as "claim" or "record_progress"."""
    state: TuneState
    """The tune's state afterwards."""
    epoch: int
    """Its epoch afterwards; of an attempt's write, that attempt's."""
    holder: str | None
    """Who holds it afterwards, or held it last."""
    step: int
    """Its step afterwards."""


@dataclass
class Tune:
    """One tune, and all that became of it."""

    id: str
    """Made up, unless the caller gave it."""
    tenant_id: str
    """Whose."""
    name: str
    """Unique among the tenant's living tunes."""
    created: Moment
    """When it was accepted."""
    request_id: str | None = None
    """The caller's."""
    request_hash: str = ""
    """Tells a retry from another request."""
    engine: str = ENGINE
    """That a trainer must offer."""
    memory_class: int = 0
    """GiB that a trainer must have."""
    checkpoint: str = ""
    """Its base checkpoint's id."""
    priority: int = 0
    """Among the tenant's own tunes the higher goes first."""
    steps: int = 10
    """Wanted."""
    ready: bool = True
    """Whether its pictures have been uploaded. Where not, its first claim fails it."""

    state: TuneState = TuneState.QUEUED
    """Where it stands."""
    epoch: int = 0
    """Grows by one with every claim."""
    holder: str | None = None
    """The trainer that holds it, or held it last."""
    expires: Moment | None = None
    """When its lease ends. None unless it is leased."""
    claimed_at: float = 0.0
    """When its newest lease began."""
    judged: bool = False
    """Whether a claim has looked at its pictures."""
    cancel: bool = False
    """Whether its owner wants it to end."""
    deleted: bool = False
    """Whether it is hidden."""
    attempts: int = 0
    """Accepted and not given back."""
    crashes: int = 0
    """Attempts that ended badly since the newest snapshot."""
    reported_seq: int = 0
    """The newest report that was recorded under this epoch."""
    step: int = 0
    """As last heard."""
    phase: str | None = None
    """As last heard of a running one."""
    recipe: str | None = None
    """What the first attempt fixed."""
    snapshots: list[Snapshot] = field(default_factory=list)
    """Those that are kept: the newest last, before it the one before it."""
    lora: LoraResult | None = None
    """Where it succeeded."""
    log: list[Entry] = field(default_factory=list)
    """Its events."""
    history: list[Write] = field(default_factory=list)
    """Every accepted write, renewals too."""

    @property
    def newest_step(self) -> int:
        """The last step whose metrics stand in this epoch's log; 0: none does."""
        told = [entry for entry in self.log if (entry.epoch, entry.kind) == (self.epoch, "metrics")]
        return int(told[-1].body["steps"][-1]["step"]) if told else 0

    @property
    def expires_at(self) -> float | None:
        """When its lease ends, seconds. None unless it is leased."""
        return None if self.expires is None else self.expires[0]

    @property
    def snapshot(self) -> Snapshot | None:
        """Where the next attempt goes on from."""
        return self.snapshots[-1] if self.snapshots else None


@dataclass
class Trainer:
    """A trainer as last heard."""

    hello: Hello
    """The newest."""
    free_slots: int = 0
    """As the newest beat said."""
    seen_at: float = 0.0
    """The newest Hello or beat."""
    connected: bool = True
    """Whether its stream lasts."""
    drain_reason: str | None = None
    """Why the operator wants it empty; None: it is to work."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    tune: Tune
    """This request's or the earlier one's."""
    replayed: bool
    """Whether it is the earlier one's."""


@dataclass(frozen=True)
class Claim:
    """A tune that is now the trainer's."""

    lease: LeaseRef
    """The attempt."""
    tune: Tune
    """The tune itself, not a copy of it."""
    snapshot: Snapshot | None
    """Where to go on from."""

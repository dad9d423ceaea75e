"""Who trains which tune: claim, accept, renew, restate, withdraw, reap. Called by gateway/dispatch and gateway/session; knows no
stream. What an attempt reports is in reports.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from store.database import Database
from store.tables import Asset, Tune

#: A tune ends when so many attempts have ended badly with no newer snapshot between them.
POISON_LIMIT = 3


@dataclass(frozen=True)
class LeaseRef:
    """One attempt at one tune: what every write of it is fenced by."""

    tune_id: str
    """The tune."""
    epoch: int
    """Grows by one with every claim."""
    trainer_id: str
    """From the trainer's token or certificate, never from what it says."""


@dataclass(frozen=True)
class Offer:
    """A free slot."""

    trainer_id: str
    """Whose."""
    engines: Sequence[str]
    """That it can run."""
    memory_bytes: int
    """That a tune may use."""
    warm_checkpoints: Sequence[str] = ()
    """Resident in the engine: asset ids of checkpoints, or digests that stand in an asset's sha256."""


@dataclass(frozen=True)
class Snapshot:
    """A place to go on from."""

    object_key: str
    """Where it lies."""
    step: int
    """The step after which it was taken."""
    sha256: str
    """Of its bytes, hexadecimal."""
    size_bytes: int
    """Its size."""


@dataclass(frozen=True)
class Claim:
    """A tune that is now the trainer's."""

    lease: LeaseRef
    """The attempt."""
    tune: Tune
    """As it stands, ASSIGNED. Its resolved_recipe is what the first attempt fixed."""
    files: Sequence[tuple[Asset, str | None]]
    """The pictures that are good, in order, with their captions."""
    checkpoint: Asset
    """The base model."""
    snapshot: Snapshot | None
    """Where to go on from."""


@dataclass(frozen=True)
class Renewal:
    """What a beat found."""

    extended: Sequence[LeaseRef]
    """Last a whole lease from now."""
    lost: Sequence[LeaseRef]
    """Are no longer the trainer's."""
    cancelled: Sequence[LeaseRef]
    """Of the extended ones those whose tune is to be cancelled."""


class HeldAction(StrEnum):
    """What a trainer must do with an attempt that it still holds."""

    CONTINUE = "CONTINUE"
    ABORT = "ABORT"
    SEND_RESULT = "SEND_RESULT"


@dataclass(frozen=True)
class Held:
    """An attempt that a trainer restates."""

    lease: LeaseRef
    """The attempt."""
    result_pending: bool = False
    """Whether a terminal report waits in its spool."""


async def claim(db: Database, offer: Offer, lease_seconds: float) -> Claim | None:
    """Gives the trainer a tune: one whose lease has ended, else the neediest tenant's first. None: nothing fits.

    Ends on its way what it finds cancelled, poisoned or without pictures.
    """
    raise NotImplementedError


async def accept(db: Database, lease: LeaseRef) -> bool:
    """The trainer has taken it: RUNNING. False: the lease is no longer its."""
    raise NotImplementedError


async def withdraw(db: Database, lease: LeaseRef, reason: str, details: str = "") -> bool:
    """The assignment was rejected, or not accepted in time: back to the queue; costs no attempt. False: stale."""
    raise NotImplementedError


async def renew(db: Database, trainer_id: str, held: Sequence[LeaseRef], lease_seconds: float) -> Renewal:
    """A beat: extends by a whole lease what is still the trainer's, also where its time has run out and nobody claimed it."""
    raise NotImplementedError


async def restate(
    db: Database, trainer_id: str, held: Sequence[Held], lease_seconds: float
) -> dict[LeaseRef, HeldAction]:
    """A Hello: says for each restated attempt what to do with it, extends those that go on, and ends every other lease of the
    trainer at once.
    """
    raise NotImplementedError


async def is_current(db: Database, lease: LeaseRef) -> Tune | None:
    """The tune if the lease is still the trainer's, for signing URLs; None where it is stale. Writes nothing."""
    raise NotImplementedError


async def reap(db: Database, lease_seconds: float) -> int:
    """Ends expired tunes that are cancelled or poisoned, and shows that the service is alive. Returns how many ended.

    To be called by every gateway, once a heartbeat: where nobody has for half a lease, we were away, and one whole lease passes
    before any lease counts as ended.
    """
    raise NotImplementedError

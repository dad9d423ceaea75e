"""The records that leases, claims and reports speak in; the gateway has them as leases.LeaseRef and so on. No SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from store.tables import Asset, Tune


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


def newest_snapshot(tune: Tune) -> Snapshot | None:
    """Where the tune's next attempt goes on from; None: from the beginning."""
    if tune.snapshot_key is None:
        return None
    assert tune.snapshot_step is not None
    assert tune.snapshot_sha256 is not None
    return Snapshot(tune.snapshot_key, tune.snapshot_step, tune.snapshot_sha256, tune.snapshot_size_bytes or 0)

"""What the trainer's end of the protocol asks to be done. Told by protocol.py; performed by the workbench."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from trainer.supervisor.leases import Lease
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

if TYPE_CHECKING:
    from trainer.supervisor.spool import Report


class Ending(enum.Enum):
    """Why an attempt is ended from outside."""

    CANCELLED = "cancelled"
    """The caller cancelled the tune: CancelObserved."""
    RETURNED = "returned"
    """This process leaves: LeaseReturned."""
    ABANDONED = "abandoned"
    """The lease is lost: nothing is reported."""


@dataclass(frozen=True)
class Greeted:
    """A gateway has welcomed us: what was asked on an older stream is to be asked again, and what was told there and is
    not known to be stored, told again.
    """

    verdicts: Mapping[Lease, pb.HeldAction.ValueType]


@dataclass(frozen=True)
class Begin:
    """Work on this tune."""

    assign: pb.Assign


@dataclass(frozen=True)
class End:
    """Stop this attempt."""

    lease: Lease
    ending: Ending
    why: str = ""


@dataclass(frozen=True)
class Upload:
    """Put the report's object where its signed URL says; then call uploaded()."""

    report: Report


@dataclass(frozen=True)
class Delete:
    """This report is recorded: take it off the disk."""

    lease: Lease
    report_seq: int


@dataclass(frozen=True)
class Forget:
    """The attempt is over: delete all that is kept of it. Its last report's name, or "abandoned"."""

    lease: Lease
    outcome: str


@dataclass(frozen=True)
class Stored:
    """The attempt's Progress is in the database up to this step: it need not be told again."""

    lease: Lease
    step: int


@dataclass(frozen=True)
class Hand:
    """These URLs were asked for."""

    urls: pb.Urls


@dataclass(frozen=True)
class Heed:
    """The operator wants this trainer empty, and why; or no longer: log it."""

    drained: bool
    why: str = ""


@dataclass(frozen=True)
class Ignore:
    """The gateway is newer than we are: log it."""

    arm: str | None


@dataclass(frozen=True)
class Close:
    """End the stream and open another one; `redirected`: at another gateway, and without delay."""

    why: str
    redirected: bool = False


@dataclass(frozen=True)
class Leave:
    """All is given back: end the stream for good, once all is said."""


Effect: TypeAlias = Greeted | Begin | End | Delete | Forget | Stored | Hand | Heed | Ignore | Close | Leave

"""Says of an exception why a tune ended, and whether another attempt may fare better. Used by engine and supervisor;
knows neither the pipe nor the stream, and imports no torch: the supervisor lives without it.

    TuneFault                     the base of all that we raise on purpose
      RejectedPictures            a picture was refused, and the caller wanted all of them
      NoGoodPicture               every picture was refused
      PictureDamaged              what was downloaded is not what was uploaded
      InvalidRecipe               a hyperparameter is unknown or out of range
      UnknownEngine               no family of that name
      CheckpointRefused           never loaded: pickle, or not this engine's layout
      CheckpointUnreadable        a file of it is damaged or missing
      RecipeMismatch              the resolved recipe does not fit the pictures at hand
      SnapshotRefused             the place to go on from is damaged, or another recipe's
      Diverged                    too many steps in a row gave no finite gradient
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from typing import ClassVar


class TuneFault(Exception):
    """Ends a tune; its text is the sentence that the caller reads."""

    reason: ClassVar[str] = "TUNE_FAULT"
    retryable: ClassVar[bool] = False


class RejectedPictures(TuneFault):
    """A picture was refused, and the caller wanted all of them."""

    reason = "REJECTED_PICTURES"


class NoGoodPicture(TuneFault):
    """Every picture was refused."""

    reason = "NO_GOOD_PICTURE"


class PictureDamaged(TuneFault):
    """What was downloaded is not what was uploaded."""

    reason = "PICTURE_DAMAGED"
    retryable = True


class InvalidRecipe(TuneFault):
    """A hyperparameter is unknown or out of range."""

    reason = "INVALID_RECIPE"


class UnknownEngine(TuneFault):
    """No family of that name; a trainer that has it may take the tune."""

    reason = "UNKNOWN_ENGINE"
    retryable = True


class CheckpointRefused(TuneFault):
    """Never loaded: pickle, or not this engine's layout."""

    reason = "CHECKPOINT_REFUSED"


class CheckpointUnreadable(TuneFault):
    """A file of the checkpoint is damaged or missing; another trainer may have a better copy."""

    reason = "CHECKPOINT_UNREADABLE"
    retryable = True


class RecipeMismatch(TuneFault):
    """The resolved recipe does not fit the pictures at hand, or is of another version; another trainer may know it."""

    reason = "RECIPE_MISMATCH"
    retryable = True


class SnapshotRefused(TuneFault):
    """The place to go on from is damaged, or another recipe's. The next attempt gets the one before it."""

    reason = "SNAPSHOT_REFUSED"
    retryable = True


class Diverged(TuneFault):
    """Too many steps in a row gave no finite gradient."""

    reason = "DIVERGED"


@dataclass(frozen=True)
class Failure:
    """How an attempt failed."""

    reason: str
    """A stable word."""
    details: str
    """The same for people."""
    retryable: bool
    """Whether another attempt may fare better."""
    fatal: bool = False
    """Whether the process that met it can do no further work: a device that faulted stays so until its process ends."""


def failure_of(fault: BaseException) -> Failure:
    """What to report of an exception."""
    said = str(fault) or type(fault).__name__
    if isinstance(fault, TuneFault):
        return Failure(fault.reason, said, fault.retryable)
    if isinstance(fault, MemoryError) or _is_torch(fault, "OutOfMemoryError") or _says(fault, *NO_MEMORY):
        return Failure("OUT_OF_MEMORY", f"not enough memory: {_first_line(said)}", retryable=True)
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure("DISK_FULL", f"no room on the trainer's disk: {said}", retryable=True)
    if _is_torch(fault, "AcceleratorError") or _says(fault, *DEVICE_FAULTS):
        return Failure("DEVICE_FAULT", _first_line(said), retryable=True, fatal=True)
    if isinstance(fault, OSError):
        return Failure("DISK_FAULT", said, retryable=True)
    # Ours. Not retried: the same recipe would most likely meet it again.
    return Failure("INTERNAL", f"{type(fault).__name__}: {_first_line(said)}", retryable=False)


#: What torch says in a plain RuntimeError: the host's memory is full; the device, its driver or its library failed.
NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
DEVICE_FAULTS = ("CUDA error", "CUDA driver error", "cuDNN error")


def _says(fault: BaseException, *words: str) -> bool:
    return isinstance(fault, RuntimeError) and any(each in str(fault) for each in words)


def _is_torch(fault: BaseException, name: str) -> bool:
    kind = getattr(sys.modules.get("torch"), name, None)
    return isinstance(kind, type) and isinstance(fault, kind)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:500] if text.strip() else text

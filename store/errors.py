"""What the store says no with. Raised by every module of the store, translated by gateway/status.py; knows no RPC
codes.

StoreError
 +- NotFound            no such row, or not the caller's: the two are never told apart
 +- NameTaken           a living tune of the tenant has the name
 +- StateForbids        the row is there, but its state does not allow this
 +- QueueFull           the tenant has as many tunes waiting as it may have
 +- RequestReused       the same request_id came with another body
 +- InvalidReference    the request names things that are not there, each with its field
 +- DatabaseAway        no connection to the database, or it broke off: nothing is known of what was asked
 +- ObjectsAway         the object store does not answer, or does not let us in: likewise
"""

from __future__ import annotations

from collections.abc import Sequence


class StoreError(Exception):
    """The store refused."""

    #: A stable word for programs.
    reason = "STORE_ERROR"


class NotFound(StoreError):
    """There is no such thing, or it is not yours."""

    reason = "NOT_FOUND"


class NameTaken(StoreError):
    """A living tune of the tenant has this name."""

    reason = "NAME_TAKEN"


class StateForbids(StoreError):
    """Its state does not allow this."""

    reason = "STATE_FORBIDS"


class QueueFull(StoreError):
    """The tenant's queue is full."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_seconds: float = 30.0) -> None:
        super().__init__(message)
        #: When to ask again; a guess, for no one knows when a tune will end.
        self.retry_after_seconds = retry_after_seconds


class RequestReused(StoreError):
    """This request_id came before, with another request."""

    reason = "REQUEST_ID_REUSED"


class InvalidReference(StoreError):
    """The request names something that is not there."""

    reason = "INVALID_REFERENCE"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in violations))
        #: (proto field path, sentence) of every fault at once, such as ("details.lora_tune.files[1].file_id", "...").
        self.violations = list(violations)


class DatabaseAway(StoreError):
    """The database does not answer. Whether the last transaction was committed is not known: ask again."""

    reason = "DATABASE_AWAY"

    def __init__(self, message: str, retry_after_seconds: float = 2.0) -> None:
        super().__init__(message)
        #: When to ask again.
        self.retry_after_seconds = retry_after_seconds


class ObjectsAway(StoreError):
    """The object store does not answer at the moment: ask again."""

    reason = "OBJECTS_AWAY"

    def __init__(self, message: str, retry_after_seconds: float = 2.0) -> None:
        super().__init__(message)
        #: When to ask again.
        self.retry_after_seconds = retry_after_seconds

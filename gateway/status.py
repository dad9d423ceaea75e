"""What each refusal is called: store error -> gRPC code, gRPC code -> HTTP status, refusal -> google.rpc.Status.

Called by the interceptors, which send a status, and by the HTTP shim, which reads one. The only place where codes
stand; knows no rpc and no route.

    StoreError -> Refusal(code, reason, message, violations, retry) -> google.rpc.Status -> HTTP status and JSON
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from store import errors

DOMAIN: Final = "tunesmith"
STATUS_KEY: Final = "grpc-status-details-bin"  # the trailing metadata in which gRPC carries a google.rpc.Status

# Metadata key: authenticate the caller, judge the request by the rules, and refuse it in any case. The HTTP shim sends
# it with what it could not read whole: a caller without a key learns only that, and others learn every fault at once.
JUDGE_ONLY: Final = "x-tunesmith-judge-only"

# A native client takes 8 KiB of metadata by default, and an error that exceeds them it does not see at all. In them the
# status is base64, the message stands once more, percent-encoded, and what else rides in the trailers wants its room.
NATIVE_BYTES: Final = 4864
MESSAGE_BYTES: Final = 1000

LONGEST_RETRY: Final = 86_400.0  # seconds; a longer wait is told as this one, so that no float overflows

# The class that is nearest in the error's ancestry counts.
STORE: Final[dict[type[errors.StoreError], grpc.StatusCode]] = {
    errors.StoreError: grpc.StatusCode.INTERNAL,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.NameTaken: grpc.StatusCode.ALREADY_EXISTS,
    errors.StateForbids: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RequestReused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidReference: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DatabaseAway: grpc.StatusCode.UNAVAILABLE,
    errors.ObjectsAway: grpc.StatusCode.UNAVAILABLE,
}

# ErrorInfo.metadata["http_status"] overrides it where one code has two statuses (RESOURCE_EXHAUSTED: 429 or 413).
HTTP: Final[dict[grpc.StatusCode, int]] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,  # not 409, which the TypeScript SDK retries
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}

# What a caller reads where the status has no sentence of ours: gRPC's own would tell of sockets and stack frames.
SENTENCES: Final[dict[grpc.StatusCode, str]] = {
    grpc.StatusCode.CANCELLED: "The request was cancelled.",
    grpc.StatusCode.UNKNOWN: "Internal error.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The answer took too long.",
    grpc.StatusCode.INTERNAL: "Internal error.",
    grpc.StatusCode.UNAVAILABLE: "Not available at the moment; try again.",
    grpc.StatusCode.DATA_LOSS: "Internal error.",
    grpc.StatusCode.UNIMPLEMENTED: "Not implemented by this server.",
}

_BY_NUMBER: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Violation:
    """One field of a request that is at fault."""

    field: str
    """Proto path: `details.lora_tune.files[1].file_id`, `metadata["k"]`. Empty: the request as a whole."""
    description: str
    """What is wrong, for people."""
    reason: str = "VALUE_ERROR"
    """A stable word: `STRING_MIN_LEN`, `REQUIRED`, `INVALID_REFERENCE`."""


class Refusal(Exception):
    """Raised by a servicer, or made of a store's error: ends an rpc with a rich status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds
        self.http_status = http_status if http_status is not None else HTTP[code]


def invalid(violations: Sequence[Violation], reason: str = "INVALID_REQUEST") -> Refusal:
    """Returns the refusal of a request that breaks rules: every one of them at once."""
    first = violations[0] if violations else Violation("", "The request is invalid.")
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    subject = f"{first.field}: " if first.field else ""
    message = f"{subject}{first.description}{more}"
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message, violations=violations)


def refusal(error: errors.StoreError) -> Refusal:
    """Returns what a store's error means to a caller."""
    code = next(STORE[kind] for kind in type(error).__mro__ if kind in STORE)
    if code is grpc.StatusCode.INTERNAL:
        return Refusal(code, "INTERNAL", SENTENCES[code])
    violations = [Violation(path, text, error.reason) for path, text in getattr(error, "violations", ())]
    if isinstance(error, errors.RequestReused):
        violations = [Violation("request_id", str(error) or "came before, with another request", error.reason)]
    retry = getattr(error, "retry_after_seconds", None)
    if code is grpc.StatusCode.UNAVAILABLE and retry is None:
        retry = 1.0
    # A lost connection's own words name hosts and drivers; the class's do not.
    words = "" if code is grpc.StatusCode.UNAVAILABLE else str(error)
    message = words or (type(error).__doc__ or SENTENCES[grpc.StatusCode.INTERNAL]).partition("\n")[0]
    return Refusal(code, error.reason, message, violations=violations, retry_after_seconds=retry)


def rich(refused: Refusal, request_id: str, *, limit_bytes: int | None = None) -> Status:
    """Returns the google.rpc.Status of a refusal.

    Args:
        refused: The refusal.
        request_id: Stands in RequestInfo.
        limit_bytes: Leaves out the violations that exceed it, and says how many; and cuts the message to MESSAGE_BYTES
            as it goes over the wire.
    """
    message = refused.message[:1000] if limit_bytes is None else _cut(refused.message)
    status = Status(code=refused.code.value[0], message=message)
    metadata = {"http_status": str(refused.http_status)} if refused.http_status != HTTP[refused.code] else {}
    _add(status, ErrorInfo(reason=refused.reason, domain=DOMAIN, metadata=metadata))
    _add(status, RequestInfo(request_id=request_id))
    if refused.retry_after_seconds is not None:
        nanos = math.ceil(min(refused.retry_after_seconds, LONGEST_RETRY) * 1e9)
        _add(status, RetryInfo(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)))
    if refused.violations:
        room = None if limit_bytes is None else limit_bytes - status.ByteSize()
        _add(status, _bad_request(refused.violations, room))
    return status


def _cut(message: str) -> str:
    """As much of the message as gRPC may percent-encode in MESSAGE_BYTES."""
    left = MESSAGE_BYTES
    for place, letter in enumerate(message):
        left -= 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())
        if left < 0:
            return message[:place]
    return message


def _add(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _bad_request(violations: Sequence[Violation], room: int | None) -> BadRequest:
    request = BadRequest()
    for position, violation in enumerate(violations):
        field, description = violation.field, violation.description
        if room is not None:  # a key of a map may be long, and a value in a sentence
            field, description = field[:500], description[:2000]
        entry = BadRequest.FieldViolation(field=field, description=description, reason=violation.reason)
        size = entry.ByteSize() + 4
        if room is not None and room < size + 100:
            request.field_violations.add(description=f"and {len(violations) - position} more", reason="AND_MORE")
            break
        request.field_violations.append(entry)
        room = None if room is None else room - size
    return request


def received(code: grpc.StatusCode, details: str | None, trailing: Iterable[tuple[str, Any]] | None) -> Refusal:
    """Reads what an rpc ended with: a rich status of ours, or gRPC's own bare one."""
    if code is grpc.StatusCode.UNKNOWN:  # gRPC's word for what a server raised and nobody translated: a fault of ours
        code = grpc.StatusCode.INTERNAL
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    status = _rich_in(trailing)
    for packed in status.details:
        for detail in (info, bad, retry):
            packed.Unpack(detail)
    ours = info.domain == DOMAIN
    message = status.message if ours else SENTENCES.get(code, details or f"{code.name.replace('_', ' ').capitalize()}.")
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    if delay is None and code is grpc.StatusCode.UNAVAILABLE:
        delay = 1.0
    http_status = info.metadata.get("http_status", "") if ours else ""
    if not ours and code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (details or ""):
        http_status, message = "413", "The request is too large."
    return Refusal(
        code,
        info.reason if ours else code.name,
        message,
        violations=[Violation(v.field, v.description, v.reason or "VALUE_ERROR") for v in bad.field_violations],
        retry_after_seconds=delay,
        http_status=int(http_status) if http_status.isdecimal() else None,
    )


def code_of(number: int) -> grpc.StatusCode:
    """Returns the code with the number that goes over the wire."""
    return _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def _rich_in(trailing: Iterable[tuple[str, Any]] | None) -> Status:
    status = Status()
    for key, value in trailing or ():
        if key == STATUS_KEY:
            try:
                status.ParseFromString(value)
            except DecodeError:
                status.Clear()
    return status

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from gateway import status
from gateway.quotas import rate_limited
from gateway.status import Refusal, Violation, received, refusal, rich
from store import errors


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def sent(refused: Refusal) -> Refusal:
    """The refusal after its way over the wire."""
    details = rich(refused, "id")
    return received(refused.code, details.message, [(status.STATUS_KEY, details.SerializeToString())])


def test_every_store_error_has_a_code() -> None:
    assert subclasses(errors.StoreError) == set(status.STORE)


def test_every_code_has_an_http_status() -> None:
    assert set(status.HTTP) == set(grpc.StatusCode)


@pytest.mark.parametrize(
    "refused",
    [
        Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "No such tune."),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "Full.", retry_after_seconds=1.25),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", "Large.", http_status=413),
        Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "Internal error."),
        status.invalid([Violation("a.b[0]", "is wrong", "WRONG"), Violation("c", "is wrong, too")]),
    ],
    ids=lambda refused: refused.reason,
)
def test_a_refusal_arrives_as_it_was_sent(refused: Refusal) -> None:
    assert vars(sent(refused)) == vars(refused)


def test_a_subclass_of_a_store_error_is_what_its_parent_is() -> None:
    class Odd(errors.NotFound):
        reason = "ODD"

    assert refusal(Odd()).code is grpc.StatusCode.NOT_FOUND
    assert refusal(Odd()).reason == "ODD"


def test_an_error_without_words_says_what_its_class_says() -> None:
    assert refusal(errors.NotFound()).message == "There is no such thing, or it is not yours."


def test_a_lost_database_is_not_told_in_the_drivers_words() -> None:
    refused = refusal(errors.DatabaseAway("connection to 10.0.0.1 refused, user tunesmith"))

    assert "10.0.0.1" not in refused.message
    assert refused.retry_after_seconds == 2.0


@pytest.mark.parametrize(
    ("code", "details", "message", "http_status"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "unix:/tmp/x: connection refused",
            "Not available at the moment; try again.",
            503,
        ),
        (grpc.StatusCode.UNKNOWN, "Unexpected <class 'KeyError'>: 'secret'", "Internal error.", 500),
        (grpc.StatusCode.INTERNAL, "Exception deserializing request!", "Internal error.", 500),
        (grpc.StatusCode.ABORTED, "A sentence of a servicer's.", "A sentence of a servicer's.", 409),
        (grpc.StatusCode.NOT_FOUND, "", "Not found.", 404),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (5 vs. 4)",
            "The request is too large.",
            413,
        ),
    ],
)
def test_what_grpc_says_itself_is_told_without_its_insides(
    code: grpc.StatusCode, details: str, message: str, http_status: int
) -> None:
    refused = received(code, details, None)

    reason = "INTERNAL" if code is grpc.StatusCode.UNKNOWN else code.name
    assert (refused.message, refused.http_status, refused.reason) == (message, http_status, reason)
    assert refused.code.name == reason


def test_a_wait_without_end_is_told_as_a_day() -> None:
    refused = rate_limited("Too often.", math.inf)

    retry = RetryInfo()
    assert any(packed.Unpack(retry) for packed in rich(refused, "r").details)
    assert retry.retry_delay.ToTimedelta().days == 1


def test_a_broken_rich_status_is_none() -> None:
    refused = received(grpc.StatusCode.NOT_FOUND, "gone", [(status.STATUS_KEY, b"\xff\xff")])

    assert (refused.message, refused.reason) == ("gone", "NOT_FOUND")


def test_another_services_error_info_is_not_taken_for_ours() -> None:
    foreign = rich(Refusal(grpc.StatusCode.INTERNAL, "X", "their words"), "id")
    info = ErrorInfo(reason="X", domain="example.com", metadata={"http_status": "200"})
    foreign.details[0].Pack(info)

    refused = received(grpc.StatusCode.INTERNAL, "d", [(status.STATUS_KEY, foreign.SerializeToString())])

    assert (refused.reason, refused.message, refused.http_status) == ("INTERNAL", "Internal error.", 500)


def test_violations_are_left_out_where_there_is_no_room_and_that_is_said() -> None:
    refused = status.invalid([Violation(f"field_{number}", "x" * 100) for number in range(500)])

    small = rich(refused, "id", limit_bytes=4000)

    bad = BadRequest()
    assert any(detail.Unpack(bad) for detail in small.details)
    assert small.ByteSize() <= 4000
    assert bad.field_violations[-1].description == f"and {500 - len(bad.field_violations) + 1} more"

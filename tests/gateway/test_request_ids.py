"""By which names a request goes: the caller's own where they are harmless and in the right form."""

from __future__ import annotations

import pytest

from gateway import request_ids

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("given", [GOOD, GOOD.encode(), f"cc-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-more"])
def test_trace_context_is_taken_from_the_caller_without_what_a_later_version_adds(given: str | bytes) -> None:
    taken = request_ids.traceparent(given)

    assert taken is not None
    assert taken[2:] == GOOD[2:]
    assert request_ids.trace_fields(taken) == {"trace_id": TRACE}


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"{GOOD}-more",
        f"{GOOD}0",
        f"cc-{TRACE}-{PARENT}-01more",
        f"{GOOD}\n",
        b"00-\xff",
    ],
)
def test_what_is_no_trace_context_is_gone_on_without(given: str | bytes | None) -> None:
    assert request_ids.traceparent(given) is None
    assert request_ids.trace_fields(None) == {}

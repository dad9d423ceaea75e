"""Some seconds of hostile requests, by seed, beside a running tune. `scripts/bench hostile` does it for a minute and
tells the figures; here they are only shown, and what is held is what may never happen, on a machine however slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.hostile.__main__ import figures
from benchmarks.hostile.scene import play
from tests.servers.service import Client, Service

SECONDS, RATE, SEED = 6.0, 60.0, 20
GROWTH = 80.0  # MB; attacks that are kept at all cost far more: the large bodies alone have 3.5 MB each


async def test_hostile_requests_are_answered_as_documented_and_hurt_nobody(
    service: Service, client: Client, pictures: list[Path], record_property: Callable[[str, object], None]
) -> None:
    seen = await play(service, client, pictures[0], rate=RATE, seconds=SECONDS, seed=SEED)

    told = figures(seen)
    for name in ("heartbeat_ack_ms", "heartbeat_ack_ms_without_load", "gateway_memory_mb", "answer_ms"):
        record_property(f"measured: {name}", told[name])
    assert seen.answers(500) == 0, seen.load["statuses"]
    assert seen.load["unexpected"] == {}
    assert sum(sum(found.values()) for found in seen.load["statuses"].values()) > RATE * SECONDS
    # A beat is late where it costs a lease: of the trainer that trains, a further attempt; of the one that only beats,
    # an ack that does not extend it.
    assert seen.attempts == {1}
    assert seen.steps[1] > seen.steps[0]
    assert seen.beats.lost == 0
    assert seen.memory[-1] - seen.memory[0] < GROWTH
    assert 0 < max(seen.judges) < 200, "a bomb costs its judge no memory, for it is refused by its header"

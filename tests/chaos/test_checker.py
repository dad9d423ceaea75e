"""The history checker finds nothing in a good history, and in a broken one what was broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import POISONED, violations
from tests.chaos.history import TERMINAL, Content, Entry, History, Lora, Tenant, Tune, attempts, repeated

LORA = Lora("asset_1", "tune_1", "ready", "loras/tune_1/2/aa.safetensors", "aa", 10)


def moved(epoch: int, status: str, reason: str, details: str = "") -> Entry:
    return Entry(0, epoch, "status_changed", {"status": status, "reason": reason, "details": details})


def stepped(epoch: int, *steps: int) -> Entry:
    return Entry(0, epoch, "metrics", {"steps": [{"step": step} for step in steps]})


def kept(epoch: int, step: int) -> Entry:
    return Entry(0, epoch, "snapshot", {"step": step})


def told(entries: Iterable[Entry]) -> list[Entry]:
    """With the numbers that the store gives."""
    return [replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)]


#: Claimed, trained to step 5 with a snapshot of step 3, lost; gone on with from there, repeating steps 4 and 5.
DISTURBED = [
    moved(0, "pending", "QUEUED"),
    moved(1, "pending", "ASSIGNED"),
    moved(1, "running", "STARTED"),
    stepped(1, 1, 2, 3),
    kept(1, 3),
    stepped(1, 4, 5),
    moved(2, "pending", "LEASE_ENDED"),
    moved(2, "pending", "ASSIGNED"),
    moved(2, "running", "STARTED"),
    stepped(2, 4, 5, 6),
    moved(2, "succeeded", "SUCCEEDED"),
]


def tune(log: Iterable[Entry] = DISTURBED, **changes: Any) -> Tune:
    entries = told(log)
    row: dict[str, Any] = {
        "id": "tune_1",
        "name": "ring-1",
        "state": "succeeded",
        "lease_epoch": 2,
        "event_seq": len(entries),
        "log": entries,
        "request_id": "request-1",
        "output_lora_ids": ["asset_1"],
        "webhooks": [
            f"tune.{each.body['status']}"
            for each in entries
            if each.reason == "STARTED" or each.body.get("status") in TERMINAL
        ],
    }
    return Tune(**{**row, **changes})


def history(of: Tune | None = None, **changes: Any) -> History:
    whole: dict[str, Any] = {
        "tunes": [of or tune()],
        "loras": [LORA],
        "objects": {LORA.object_key: Content("aa", 10), "assets/asset_2/x": Content("bb", 5)},
        "tenants": [Tenant("tenant", 0, 0)],
        "accepted": [("request-1", "tune_1"), ("request-1", "tune_1")],
        "seen": [("tune_1", "succeeded")],
        "twins": {"ring": "aa"},
    }
    return History(**{**whole, **changes})


def with_entry(at: int, entry: Entry) -> Tune:
    return tune([*DISTURBED[:at], entry, *DISTURBED[at:]])


def ended(state: str, log: Iterable[Entry]) -> History:
    return history(tune(log, state=state, output_lora_ids=[]), loras=[], objects={}, seen=[])


def test_good_history_has_no_violation() -> None:
    assert violations(history()) == []


def test_attempts_are_told_by_the_log() -> None:
    first, second = attempts(tune())

    assert (first.epoch, first.snapshot_step, first.steps) == (1, 0, [1, 2, 3, 4, 5])
    assert (second.epoch, second.snapshot_step, second.steps) == (2, 3, [4, 5, 6])
    assert (first.is_resumed, second.is_resumed) == (False, True)
    assert (first.is_of_an_expired_lease, second.is_of_an_expired_lease) == (False, True)
    assert repeated(tune()) == 2


def test_attempt_after_a_refused_snapshot_goes_on_from_the_one_before_it() -> None:
    refused = moved(2, "pending", "SNAPSHOT_REFUSED")
    log = [*DISTURBED[:4], kept(1, 2), *DISTURBED[4:9], refused, moved(3, "pending", "ASSIGNED"), stepped(3, 3, 4, 5)]

    assert [attempt.snapshot_step for attempt in attempts(tune(log))] == [0, 3, 2]


def test_cancelled_tune_without_a_lora_is_well() -> None:
    log = [*DISTURBED[:6], moved(1, "running", "CANCEL_REQUESTED"), moved(1, "cancelled", "CANCELLED")]
    whole = ended("cancelled", log)
    cancelled = replace(whole, tunes=[replace(whole.tunes[0], lease_epoch=1)], cancels=frozenset({"tune_1"}))

    assert violations(cancelled) == []


def test_failed_tune_keeps_its_snapshot_and_nothing_else() -> None:
    log = [*DISTURBED[:10], moved(2, "failed", "ENGINE_DIED", POISONED)]
    failed = tune(log, state="failed", output_lora_ids=[], snapshot_keys=["snapshots/tune_1/1/3"])
    whole = history(failed, loras=[], objects={"snapshots/tune_1/1/3": Content("cc", 1)}, seen=[])

    assert violations(whole) == []


BROKEN: dict[str, History | Tune] = {
    # 1
    "is gone": history(accepted=[("request-9", "tune_9")]),
    "was seen failed": history(seen=[("tune_1", "failed")]),
    "has not ended": ended("running", DISTURBED[:-1]),
    "its log tells of ['succeeded', 'succeeded']": with_entry(10, DISTURBED[-1]),
    "its log tells of []": tune(DISTURBED[:-1]),
    "goes on after its end": tune([*DISTURBED, stepped(2, 7)]),
    "its log has [1, 2, 4": replace(tune(), log=[entry for entry in told(DISTURBED) if entry.seq != 3]),
    "nothing was wrong with it: PICTURE_LOST": ended(
        "failed", [*DISTURBED[:10], moved(2, "failed", "PICTURE_LOST", "It is gone.")]
    ),
    # 2
    "bears epoch 1 after one of epoch 2": with_entry(9, stepped(1, 6)),
    "its claims have the epochs [1, 3]": tune([*DISTURBED[:6], *(replace(entry, epoch=3) for entry in DISTURBED[6:])]),
    "its claims have the epochs [1, 2], and its row has 3": tune(lease_epoch=3),
    "its claims have the epochs [1, 2, 2]": with_entry(8, DISTURBED[7]),
    # 3
    "step 2 follows step 6 in epoch 2": with_entry(10, stepped(2, 2)),
    "step 5 follows step 5 in epoch 1": with_entry(6, stepped(1, 5)),
    "epoch 2 repeats step 1": tune([*DISTURBED[:9], stepped(2, 1, 2, 3), DISTURBED[-1]]),
    "a snapshot of step 3 follows one of step 3": with_entry(5, kept(1, 3)),
    "was refused, and nothing had damaged it": with_entry(9, moved(2, "pending", "SNAPSHOT_REFUSED")),
    # 4
    "is succeeded and has 0 LoRAs": history(tune(output_lora_ids=[]), loras=[], objects={}),
    "is succeeded and has 2 LoRAs": history(loras=[LORA, replace(LORA, id="asset_2")]),
    "is cancelled and has 1 LoRAs": history(tune([*DISTURBED[:-1], moved(2, "cancelled", "")], state="cancelled")),
    "names ['asset_7']": history(tune(output_lora_ids=["asset_7"])),
    "its LoRA is deleted": history(loras=[replace(LORA, status="deleted")]),
    "its LoRA's object is gone": history(objects={}),
    "has the SHA-256 bb, and should have aa": history(objects={LORA.object_key: Content("bb", 10)}),
    "no row names it": history(objects={LORA.object_key: Content("aa", 10), "loras/tune_1/1/b": Content("bb", 9)}),
    "a row names it, and it was swept": history(
        tune([*DISTURBED[:10], moved(2, "failed", "X")], state="failed", output_lora_ids=[], snapshot_keys=["s"]),
        loras=[],
        objects={},
    ),
    # 5
    "the request request-1 has made ['tune_1', 'tune_2']": history(accepted=[("request-1", "tune_2")]),
    "was cancelled and was assigned again": with_entry(6, moved(1, "running", "CANCEL_REQUESTED")),
    "was cancelled before it ended, and is succeeded": with_entry(9, moved(2, "running", "CANCEL_REQUESTED")),
    "its cancel was answered, and it is succeeded": history(cancels=frozenset({"tune_1"})),
    # 6
    "its undisturbed twin's has cc": history(twins={"ring": "cc"}),
    # 7
    "its webhooks tell ['tune.running', 'tune.running'], and its log": tune(webhooks=["tune.running"] * 2),
    "'tune.succeeded', 'tune.succeeded'], and its log": tune(webhooks=[*["tune.running"] * 2, *["tune.succeeded"] * 2]),
    "its webhooks tell [], and its log": tune(webhooks=[]),
    # counters
    "counts (1, 0) tunes queued and running, and has (0, 0)": history(tenants=[Tenant("tenant", 1, 0)]),
}


@pytest.mark.parametrize("words", BROKEN)
def test_broken_history_is_found_out(words: str) -> None:
    broken = BROKEN[words]

    found = violations(broken if isinstance(broken, History) else history(broken))

    assert any(words in violation for violation in found), found

"""Holds a history to what is promised: nothing accepted is lost, nothing is done twice, nothing is made up. Called at
a run's end; pure. Each violation is a sentence that names the tune.

    1  every accepted tune reaches exactly one terminal state, and it never changes
    2  epochs strictly grow; no accepted write bears an old one
    3  steps never fall within an epoch; a resumed epoch goes on from its snapshot's step, so that no step is repeated
       but those made since
    4  SUCCEEDED if and only if one committed LoRA whose sha256 verifies; what is left of objects is what rows name
    5  one request_id, one tune; a cancelled tune never runs again
    6  the LoRA of a disturbed tune is byte for byte its undisturbed twin's
    7  each start and the end of a tune have their webhook, and nothing else has one
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import SNAPSHOT_REFUSED, TERMINAL, Attempt, History, Tune, attempts, newest_snapshots

#: Objects of attempts; those of uploads by callers are not chaos' own.
OF_ATTEMPTS = ("incoming/tune_", "loras/", "snapshots/")
#: A chaos run asks for good tunes only. One may fail all the same where it was at hand whenever something was killed.
POISONED = "attempts ended badly with no newer snapshot between them"


def violations(history: History) -> list[str]:
    """Everything that should not be; empty where all is well."""
    found = [*_lost(history), *_objects(history), *_requests(history), *_counters(history)]
    for tune in history.tunes:
        found += [*_log(tune), *_end(tune), *_epochs(tune), *_steps(tune), *_loras(history, tune)]
        found += [*_cancelled(history, tune), *_twin(history, tune), *_webhooks(tune)]
    return found


# 1


def _lost(history: History) -> Iterator[str]:
    states = {tune.id: tune.state for tune in history.tunes}
    for tune_id in sorted({tune_id for _, tune_id in history.accepted} - set(states)):
        yield f"{tune_id} was accepted and is gone"
    for tune_id, state in history.seen:
        if states.get(tune_id, state) != state:
            yield f"{tune_id} was seen {state} and is now {states[tune_id]}"


def _log(tune: Tune) -> Iterator[str]:
    seqs = [entry.seq for entry in tune.log]
    if seqs != list(range(1, tune.event_seq + 1)):
        yield f"{tune.id}: its log has {seqs}, and should have 1 to {tune.event_seq}"


def _end(tune: Tune) -> Iterator[str]:
    if tune.state not in TERMINAL:
        yield f"{tune.id} has not ended: it is {tune.state}"
    ends = [entry for entry in tune.moves if entry.body["status"] in TERMINAL]
    told = [entry.body["status"] for entry in ends]
    if told != [tune.state] and tune.state in TERMINAL:
        yield f"{tune.id} is {tune.state}, and its log tells of {told}"
    if ends and ends[0] is not tune.log[-1]:
        yield f"{tune.id}: its log goes on after its end"
    if ends and told == ["failed"] and POISONED not in ends[0].body["details"]:
        yield f"{tune.id} has failed, and nothing was wrong with it: {ends[0].reason}, {ends[0].body['details']}"


# 2


def _epochs(tune: Tune) -> Iterator[str]:
    for before, after in pairwise(tune.log):
        if after.epoch < before.epoch:
            yield f"{tune.id}: entry {after.seq} bears epoch {after.epoch} after one of epoch {before.epoch}"
    claims = [entry.epoch for entry in tune.moves if entry.reason == "ASSIGNED"]
    if claims != list(range(1, tune.lease_epoch + 1)):
        yield f"{tune.id}: its claims have the epochs {claims}, and its row has {tune.lease_epoch}"


# 3


def _steps(tune: Tune) -> Iterator[str]:
    for attempt in attempts(tune):
        for before, after in pairwise(attempt.steps):
            if after <= before:
                yield f"{tune.id}: step {after} follows step {before} in epoch {attempt.epoch}"
        yield from _beginning(tune, attempt)
    for entry, newest in zip(tune.log, newest_snapshots(tune.log), strict=True):
        if entry.kind == "snapshot" and entry.body["step"] <= newest:
            yield f"{tune.id}: a snapshot of step {entry.body['step']} follows one of step {newest}"
        if entry.reason == SNAPSHOT_REFUSED:
            yield f"{tune.id}: its snapshot of step {newest} was refused, and nothing had damaged it"


def _beginning(tune: Tune, attempt: Attempt) -> Iterator[str]:
    """What is heard of an attempt is a part of it, for Progress may be lost; but none of it lies before its
    beginning.
    """
    if attempt.steps and attempt.steps[0] <= attempt.snapshot_step:
        where = f"epoch {attempt.epoch} repeats step {attempt.steps[0]}"
        yield f"{tune.id}: {where}, and had the snapshot of step {attempt.snapshot_step}"


# 4


def _loras(history: History, tune: Tune) -> Iterator[str]:
    loras = [lora for lora in history.loras if lora.tune_id == tune.id]
    if (tune.state == "succeeded") != (len(loras) == 1) or len(loras) > 1:
        yield f"{tune.id} is {tune.state} and has {len(loras)} LoRAs"
    if list(tune.output_lora_ids) != [lora.id for lora in loras]:
        yield f"{tune.id} names {list(tune.output_lora_ids)}, and has {[lora.id for lora in loras]}"
    for lora in loras:
        content = history.objects.get(lora.object_key)
        if lora.status != "ready":
            yield f"{tune.id}: its LoRA is {lora.status}"
        if content is None:
            yield f"{tune.id}: its LoRA's object is gone"
        elif (content.sha256, content.size_bytes) != (lora.sha256, lora.size_bytes):
            yield f"{tune.id}: its LoRA's object has the SHA-256 {content.sha256}, and should have {lora.sha256}"


def _objects(history: History) -> Iterator[str]:
    named = {lora.object_key for lora in history.loras}
    # A tune that failed keeps its snapshots, for what they are worth.
    kept = {key for tune in history.tunes if tune.state == "failed" for key in tune.snapshot_keys}
    there = {key for key in history.objects if key.startswith(OF_ATTEMPTS)}
    for key in sorted(there - named - kept):
        yield f"{key}: no row names it, and it was not swept"
    for key in sorted(kept - there):
        yield f"{key}: a row names it, and it was swept"


# 5


def _requests(history: History) -> Iterator[str]:
    answers: dict[str, set[str]] = defaultdict(set)
    for request_id, tune_id in history.accepted:
        answers[request_id].add(tune_id)
    for tune in history.tunes:
        if tune.request_id is not None:
            answers[tune.request_id].add(tune.id)
    for request_id, tune_ids in sorted(answers.items()):
        if len(tune_ids) > 1:
            yield f"the request {request_id} has made {sorted(tune_ids)}"


def _cancelled(history: History, tune: Tune) -> Iterator[str]:
    asked = next((entry for entry in tune.moves if entry.reason == "CANCEL_REQUESTED"), None)
    if asked is not None:
        later = [entry for entry in tune.moves if entry.seq > asked.seq]
        if any(entry.reason == "ASSIGNED" for entry in later):
            yield f"{tune.id} was cancelled and was assigned again"
        if tune.state in TERMINAL and tune.state != "cancelled":
            yield f"{tune.id} was cancelled before it ended, and is {tune.state}"
    elif tune.id in history.cancels and tune.state != "cancelled":
        yield f"{tune.id}: its cancel was answered, and it is {tune.state}"


# 6


def _twin(history: History, tune: Tune) -> Iterator[str]:
    twin = history.twins.get(tune.recipe)
    for lora in history.loras:
        if lora.tune_id == tune.id and twin is not None and lora.sha256 != twin:
            yield f"{tune.id}: its LoRA has the SHA-256 {lora.sha256}, and its undisturbed twin's has {twin}"


# Counters: not of the six, and the first to go wrong where a move was half done.


def _counters(history: History) -> Iterator[str]:
    queued = Counter(tune.tenant_id for tune in history.tunes if tune.state == "queued")
    running = Counter(tune.tenant_id for tune in history.tunes if tune.state in ("assigned", "running"))
    for tenant in history.tenants:
        counted, true = (tenant.queued, tenant.running), (queued[tenant.id], running[tenant.id])
        if counted != true:
            yield f"{tenant.id} counts {counted} tunes queued and running, and has {true}"


# 7


def _webhooks(tune: Tune) -> Iterator[str]:
    told = [move for move in tune.moves if move.reason == "STARTED" or move.body["status"] in TERMINAL]
    wanted = [f"tune.{move.body['status']}" for move in told]
    if list(tune.webhooks) != wanted:
        yield f"{tune.id}: its webhooks tell {list(tune.webhooks)}, and its log {wanted}"

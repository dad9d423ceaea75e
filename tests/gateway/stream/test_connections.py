"""Which connection carries what: callers may hold every other one, and no beat waits for them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from store import tunes
from store.states import TuneState
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

# The stage's type lives in conftest.py, which cannot be imported: Any here.
BURST = 500


async def test_a_burst_of_creates_holds_up_no_beat_and_no_fence(postgres_stage: Any) -> None:
    stage = postgres_stage
    trainer = await stage.trainer(await stage.gateway())
    tune = await stage.submit()
    assign = await trainer.hear("assign")
    new = [new_tune(stage, f"burst-{number}") for number in range(BURST)]

    async with AsyncExitStack() as held:
        for _ in range(stage.database._writes._free):  # callers that have all connections for writing, and keep them
            await held.enter_async_context(stage.database.write())
        creating = [asyncio.create_task(tunes.submit(stage.database, each)) for each in new]
        await trainer.say(accepted=pb.Accepted(lease=assign.lease))
        await stage.until(tune.id, TuneState.RUNNING)
        acks = [await trainer.beat(assign.lease, free_slots=0) for _ in range(10)]
        created_meanwhile = sum(task.done() for task in creating)
    submitted = await asyncio.gather(*creating)

    assert [list(ack.extended) for ack in acks] == [[assign.lease]] * 10
    assert created_meanwhile == 0, "nobody held the connections up"
    assert len({each.tune.id for each in submitted}) == BURST


def new_tune(stage: Any, name: str) -> tunes.NewTune:
    return tunes.NewTune(
        tenant_id=stage.tenant,
        name=name,
        checkpoint_ref="tunesmith:tiny-shapes",
        details={"files": [], "steps": 3, "trigger_words": ["quick"]},
        files=[],
        steps=3,
        trigger_words=["quick"],
        request_hash=name,
    )

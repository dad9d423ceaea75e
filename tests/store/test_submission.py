"""What tunes.submit() promises to whoever asks for a tune."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from store import assets, errors, events, keys, tunes
from store.database import Database
from store.states import TuneState
from tests.store.world import ENGINE, World


async def test_a_submitted_tune_is_queued_with_its_files_and_first_event(world: World) -> None:
    files = [await world.file(), await world.file()]
    new = world.new_tune(files, metadata={"a": "b"}, description="d", priority=3, memory_class=8)

    submitted = await tunes.submit(world.database, new)

    assert not submitted.replayed
    found = await world.tune(submitted.tune.id)
    assert found.model_dump() == submitted.tune.model_dump()
    assert found.state is TuneState.QUEUED
    assert found.files == [(file.id, None) for file in files]
    assert (found.metadata_, found.priority, found.memory_class) == ({"a": "b"}, 3, 8)
    log = await events.list_events(world.database, found.id)
    assert [(event.seq, event.kind, event.body["reason"]) for event in log] == [(1, "status_changed", "QUEUED")]


async def test_a_submitted_tune_bears_the_checkpoint_that_was_found(world: World) -> None:
    submitted = await tunes.submit(world.database, world.new_tune([await world.file()], checkpoint_engine=ENGINE))

    tune, base = submitted.tune, world.checkpoint
    assert (tune.checkpoint_id, tune.checkpoint_name, tune.engine) == (base.id, "tiny-shapes", ENGINE)
    assert tune.checkpoint_ref == "tunesmith:tiny-shapes"
    assert tune.details["base_checkpoint"] == {"checkpoint_id": base.id, "engine": ENGINE, "name": "tiny-shapes"}


async def test_whatever_stands_against_a_checkpoint_is_said_of_its_field(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    picture = await world.file()
    unready = await assets.create(world.database, assets.NewAsset(world.tenant.id, "checkpoint", "unready"))
    foreign = await assets.create(
        world.database, assets.NewAsset(other.id, "checkpoint", "foreign", source={"builtin": "x"})
    )

    async def told(**asked: Any) -> list[tuple[str, str]]:
        with pytest.raises(errors.InvalidReference) as caught:
            await tunes.submit(world.database, world.new_tune([picture], **asked))
        return caught.value.violations

    path = "details.lora_tune.base_checkpoint.checkpoint_id"
    assert await told(checkpoint_ref="none") == [(path, "there is no asset 'none'")]
    assert await told(checkpoint_ref=foreign.id) == [(path, f"there is no asset '{foreign.id}'")]
    sentence = f"the asset '{picture.id}' is a file, and not a checkpoint"
    assert await told(checkpoint_ref=picture.id) == [(path, sentence)]
    sentence = "the checkpoint 'unready' is ready_to_upload, and not ready"
    assert await told(checkpoint_ref=unready.name) == [(path, sentence)]
    assert await told(checkpoint_engine="image/flux-dev") == [
        ("details.lora_tune.base_checkpoint.engine", f"the checkpoint's engine is '{ENGINE}', not 'image/flux-dev'")
    ]


async def test_one_name_is_each_tenants_own_checkpoint_also_in_one_transaction(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    owners = [world.tenant, other]
    made = [
        await assets.create(
            world.database,
            assets.NewAsset(owner.id, "checkpoint", "mine", data={"engine": ENGINE}, source={"builtin": "x"}),
        )
        for owner in owners
    ]
    files = [await world.file(tenant=owner) for owner in owners]
    news = [
        world.new_tune([file], tenant_id=owner.id, checkpoint_ref=ref)
        for owner, file in zip(owners, files, strict=True)
        for ref in ("mine", "tunesmith:tiny-shapes")
    ]

    answers = await asyncio.gather(*(tunes.submit(world.database, new) for new in news))

    found = [answer.tune.checkpoint_id for answer in answers]
    assert found == [made[0].id, world.checkpoint.id, made[1].id, world.checkpoint.id]


async def test_a_retry_is_known_though_its_checkpoint_is_gone(world: World) -> None:
    source = {"builtin": "x"}
    mine = await assets.create(
        world.database, assets.NewAsset(world.tenant.id, "checkpoint", "mine", data={"engine": ENGINE}, source=source)
    )
    new = world.new_tune([await world.file()], checkpoint_ref="mine", request_id="r")
    first = await tunes.submit(world.database, new)
    await assets.delete(world.database, world.tenant.id, mine.id)

    assert (await tunes.submit(world.database, new)).tune.id == first.tune.id
    assert (await tunes.check(world.database, new)).id == first.tune.id
    with pytest.raises(errors.InvalidReference):
        await tunes.submit(world.database, dataclasses.replace(new, name="another", request_id="s"))


async def test_every_unknown_file_is_reported_at_once(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    good, foreign, gone = await world.file(), await world.file(tenant=other), await world.file()
    await assets.delete(world.database, world.tenant.id, gone.id)
    new = world.new_tune([good, foreign, gone, world.checkpoint], checkpoint_ref="asset_none")

    with pytest.raises(errors.InvalidReference) as caught:
        await tunes.submit(world.database, new)

    assert [path for path, _ in caught.value.violations] == [
        "details.lora_tune.base_checkpoint.checkpoint_id",
        "details.lora_tune.files[1].file_id",
        "details.lora_tune.files[2].file_id",
        "details.lora_tune.files[3].file_id",
    ]


async def test_a_file_that_is_still_to_be_uploaded_may_be_named(world: World) -> None:
    submitted = await tunes.submit(world.database, world.new_tune([await world.file(ready=False)]))

    assert submitted.tune.state is TuneState.QUEUED


async def test_the_same_name_and_body_within_ten_minutes_is_the_same_tune(world: World) -> None:
    new = world.new_tune([await world.file()])
    first = await tunes.submit(world.database, new)
    await world.database.move_clock(9 * 60)

    again = await tunes.submit(world.database, new)

    assert again.replayed
    assert again.tune.id == first.tune.id


async def test_the_same_name_and_body_after_ten_minutes_is_a_taken_name(world: World) -> None:
    new = world.new_tune([await world.file()])
    await tunes.submit(world.database, new)
    await world.database.move_clock(11 * 60)

    with pytest.raises(errors.NameTaken):
        await tunes.submit(world.database, new)


async def test_the_same_name_with_another_body_is_taken(world: World) -> None:
    new = world.new_tune([await world.file()])
    await tunes.submit(world.database, new)

    with pytest.raises(errors.NameTaken):
        await tunes.submit(world.database, dataclasses.replace(new, request_hash="other"))
    with pytest.raises(errors.NameTaken):
        await tunes.submit(world.database, dataclasses.replace(new, request_id="new"))


async def test_another_tenant_may_use_the_name(world: World) -> None:
    other = await keys.create_tenant(world.database, "other")
    await tunes.submit(world.database, world.new_tune([await world.file()], name="n"))

    mine = world.new_tune([await world.file(tenant=other)], name="n", tenant_id=other.id)

    assert not (await tunes.submit(world.database, mine)).replayed


async def test_a_request_id_replays_for_ever_and_also_after_deletion(world: World) -> None:
    new = world.new_tune([await world.file()], request_id="r")
    first = await tunes.submit(world.database, new)
    await tunes.delete(world.database, world.tenant.id, first.tune.id)
    await world.database.move_clock(3600)

    again = await tunes.submit(world.database, dataclasses.replace(new))

    assert again.replayed
    assert again.tune.id == first.tune.id
    with pytest.raises(errors.RequestReused):
        await tunes.submit(world.database, dataclasses.replace(new, request_hash="other"))


async def test_a_deleted_tune_frees_its_name(world: World) -> None:
    new = world.new_tune([await world.file()])
    first = await tunes.submit(world.database, new)
    await tunes.delete(world.database, world.tenant.id, first.tune.id)

    again = await tunes.submit(world.database, new)

    assert not again.replayed
    assert again.tune.id != first.tune.id


async def test_a_full_queue_refuses(database: Database, world: World) -> None:
    small = await keys.create_tenant(database, "small", queue_limit=2)
    file = await world.file(tenant=small)
    outcomes = await asyncio.gather(
        *(tunes.submit(database, world.new_tune([file], tenant_id=small.id)) for _ in range(5)), return_exceptions=True
    )

    assert sum(isinstance(outcome, tunes.Submitted) for outcome in outcomes) == 2
    refusals = [outcome for outcome in outcomes if isinstance(outcome, errors.QueueFull)]
    assert len(refusals) == 3
    assert refusals[0].retry_after_seconds > 0


async def test_many_at_once_give_one_tune_a_request(world: World) -> None:
    file = await world.file()
    requests = [world.new_tune([file], request_id=f"r{number}") for number in range(10)]

    answers = await asyncio.gather(*(tunes.submit(world.database, new) for new in [*requests, *requests, *requests]))

    assert len({answer.tune.id for answer in answers}) == 10
    assert sum(not answer.replayed for answer in answers) == 10
    _, total = await tunes.list_tunes(world.database, world.tenant.id, tunes.TuneFilter())
    assert total == 10


async def test_two_gateways_at_once_give_one_tune_a_request(world: World, database_url: str) -> None:
    second = await world.other_gateway(database_url)
    file = await world.file()
    requests = [world.new_tune([file], request_id=f"r{number}", name=f"n{number}") for number in range(20)]

    answers = await asyncio.gather(
        *(tunes.submit(gateway.database, new) for new in requests for gateway in (world, second))
    )

    assert len({answer.tune.id for answer in answers}) == 20
    assert sum(not answer.replayed for answer in answers) == 20
    await second.database.close()


async def test_a_fault_in_one_submission_leaves_its_neighbours_alone(world: World) -> None:
    file = await world.file()
    good = [world.new_tune([file]) for _ in range(4)]
    unstorable = world.new_tune([file], steps=0)  # a CHECK says no, which the gateway's rules should have said before

    answers = await asyncio.gather(
        *(tunes.submit(world.database, new) for new in [*good, unstorable]), return_exceptions=True
    )

    assert all(isinstance(answer, tunes.Submitted) for answer in answers[:4])
    assert isinstance(answers[4], Exception)


async def test_a_nul_character_is_refused_on_both_databases(world: World) -> None:
    file = await world.file()

    with pytest.raises(errors.InvalidReference, match="NUL"):
        await tunes.submit(world.database, world.new_tune([file], description="a\0b"))
    with pytest.raises(errors.InvalidReference, match="NUL"):
        await tunes.submit(world.database, world.new_tune([file], metadata={"a": "\0"}))


async def test_any_other_text_comes_back_as_it_was(world: World) -> None:
    text = "é\u202e😀'\"\\;--%s:x{}\n"

    submitted = await tunes.submit(world.database, world.new_tune([await world.file()], name=text, description=text))

    assert (await world.tune(submitted.tune.id)).description == text


async def test_checking_stores_nothing(world: World) -> None:
    new = world.new_tune([await world.file()])

    checked = await tunes.check(world.database, new)

    assert checked.id == ""
    assert await tunes.list_tunes(world.database, world.tenant.id, tunes.TuneFilter()) == ([], 0)
    with pytest.raises(errors.InvalidReference):
        await tunes.check(world.database, dataclasses.replace(new, files=[("asset_none", None)]))

"""TuneService over gRPC: a real server, store and authentication."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from store import estimates, leases, reports, tunes
from store.errors import DatabaseAway
from store.estimates import Estimate
from tunesmith.v1 import asset_pb2, asset_service_pb2, tune_pb2, tune_service_pb2, tune_service_pb2_grpc

# Fixtures' types live in conftest.py, which cannot be imported: Any here.

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_created_tune_is_pending_and_found_again(tenant: Any) -> None:
    created = await tenant.create_tune(description="shapes", metadata={"k": "v"}, priority=3)

    found = await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id))

    assert found == created
    assert found.id.startswith("tune_")
    assert (found.status, found.tenant_id) == (tune_pb2.TUNE_STATUS_PENDING, tenant.id)
    assert not found.HasField("result")
    assert found.progress.queue_position == 1
    assert found.progress.pending_reason == "no connected trainer offers image/stable-diffusion-v1-5"
    base = found.details.lora_tune.base_checkpoint
    assert (base.engine, base.name) == ("image/stable-diffusion-v1-5", "tiny-shapes")
    assert (found.description, dict(found.metadata), found.priority) == ("shapes", {"k": "v"}, 3)


async def test_checkpoint_is_found_by_its_id_too(tenant: Any, ask: Any) -> None:
    checkpoint = await tenant.assets.GetAsset(asset_service_pb2.GetAssetRequest(id="tunesmith:tiny-shapes"))
    picture = await tenant.upload(ask.png())

    created = await tenant.tunes.CreateTune(ask.tune([picture.id], checkpoint=checkpoint.asset.id))

    assert created.details.lora_tune.base_checkpoint.name == "tiny-shapes"


async def test_same_request_again_gives_the_same_tune_and_says_so(tenant: Any, ask: Any) -> None:
    request = ask.tune([(await tenant.upload(ask.png())).id], request_id="once")
    first = await tenant.tunes.CreateTune(request)

    call = tenant.tunes.CreateTune(request)
    again = await call

    assert again.id == first.id
    assert dict(await call.initial_metadata())["idempotent-replay"] == "true"


async def test_retry_without_a_request_id_gives_the_same_tune(tenant: Any, ask: Any) -> None:
    request = ask.tune([(await tenant.upload(ask.png())).id])

    first, again = await tenant.tunes.CreateTune(request), await tenant.tunes.CreateTune(request)

    assert again.id == first.id


async def test_request_id_with_another_request_is_refused(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())
    await tenant.tunes.CreateTune(ask.tune([picture.id], request_id="once"))

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id], steps=11, request_id="once")))

    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_taken_name_with_another_request_is_refused(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())
    await tenant.tunes.CreateTune(ask.tune([picture.id]))

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id], steps=11)))

    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")


async def test_validate_only_tells_the_tune_and_stores_nothing(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())

    would_be = await tenant.tunes.CreateTune(ask.tune([picture.id], validate_only=True))

    assert (would_be.id, would_be.status) == ("", tune_pb2.TUNE_STATUS_PENDING)
    assert not would_be.HasField("estimate")
    assert would_be.details.lora_tune.base_checkpoint.engine == "image/stable-diffusion-v1-5"
    listed = await tenant.tunes.ListTunes(tune_service_pb2.ListTunesRequest())
    assert listed.total == 0


async def test_validate_only_tells_a_failure_that_is_certain_and_the_tune_itself_is_accepted(
    tenant: Any, ask: Any
) -> None:
    good, bad = await tenant.upload(ask.png()), await tenant.upload(b"junk", name="junk.png")
    coming = (await tenant.assets.CreateAsset(ask.file())).asset
    request = ask.tune([good.id, bad.id, coming.id], validate_only=True)

    told = await tenant.tunes.CreateTune(request)
    request.validate_only = False
    accepted = await tenant.tunes.CreateTune(request)

    sentence = f"1 of 3 files cannot be used. 'junk.png' ({bad.id}) was rejected ({bad.status_details})."
    assert (told.id, told.status, told.status_details) == ("", tune_pb2.TUNE_STATUS_FAILED, sentence)
    assert (list(told.result.rejected_assets), list(told.result.unready_assets)) == ([bad.id], [])
    assert told.result.number_of_available_assets == 2
    assert (accepted.status, accepted.HasField("result")) == (tune_pb2.TUNE_STATUS_PENDING, False)


async def test_validate_only_tells_what_a_tune_goes_on_without(tenant: Any, ask: Any) -> None:
    good, bad = await tenant.upload(ask.png()), await tenant.upload(b"junk", name="junk.png")
    coming = (await tenant.assets.CreateAsset(ask.file())).asset

    asked = ([good.id, bad.id], [bad.id], [bad.id, coming.id], [coming.id])
    goes_on, fails, may_go_on, waits = [
        await tenant.tunes.CreateTune(ask.tune(ids, validate_only=True, continue_on_rejection=True)) for ids in asked
    ]

    assert goes_on.status == may_go_on.status == waits.status == tune_pb2.TUNE_STATUS_PENDING
    assert goes_on.status_details.startswith("Goes on without 1 of 2 files. 'junk.png'")
    assert may_go_on.status_details.startswith("Goes on without 1 of 2 files.")
    assert (waits.status_details, waits.HasField("result")) == ("", False)
    assert fails.status == tune_pb2.TUNE_STATUS_FAILED
    assert fails.status_details.startswith("1 of 1 files cannot be used.")


async def test_validate_only_estimates_no_time_of_what_fails(
    tenant: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def estimate(*_: object) -> Estimate:
        return Estimate(60.0, 2.0, 1)

    monkeypatch.setattr(estimates, "estimate", estimate)
    good, bad = await tenant.upload(ask.png()), await tenant.upload(b"junk")

    told = [await tenant.tunes.CreateTune(ask.tune([id], validate_only=True)) for id in (good.id, bad.id)]

    assert [one.HasField("estimate") for one in told] == [True, False]


async def test_retry_is_known_though_its_checkpoint_is_gone(service: Any, ask: Any) -> None:
    tenant = await service.tenant("house", is_operator=True)
    request = ask.tune([(await tenant.upload(ask.png())).id], checkpoint="mine", request_id="once")
    data = asset_pb2.AssetData(checkpoint=asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5"))
    created = await tenant.assets.CreateAsset(
        asset_service_pb2.CreateAssetRequest(asset_type=asset_pb2.ASSET_TYPE_CHECKPOINT, name="mine", data=data)
    )
    await service.put(created.asset.id, b"weights")
    await tenant.assets.CompleteUpload(
        asset_service_pb2.CompleteUploadRequest(id=created.asset.id, skip_validation=True)
    )
    first = await tenant.tunes.CreateTune(request)
    await tenant.assets.DeleteAsset(asset_service_pb2.DeleteAssetRequest(id=created.asset.id))

    again = await tenant.tunes.CreateTune(request)

    assert again.id == first.id


async def test_checkpoint_that_is_still_to_be_uploaded_is_refused(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())
    data = asset_pb2.AssetData(checkpoint=asset_pb2.CheckpointData(engine="image/stable-diffusion-v1-5"))
    await tenant.assets.CreateAsset(
        asset_service_pb2.CreateAssetRequest(asset_type=asset_pb2.ASSET_TYPE_CHECKPOINT, name="mine", data=data)
    )

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id], checkpoint="mine")))

    assert "not ready" in told.violations["details.lora_tune.base_checkpoint.checkpoint_id"]


async def test_missing_details_are_refused(tenant: Any, ask: Any) -> None:
    told = await ask.refused(tenant.tunes.CreateTune(tune_service_pb2.CreateTuneRequest(name="n")))

    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "details" in told.violations


async def test_every_rule_that_is_broken_is_told_at_once(tenant: Any, ask: Any) -> None:
    request = ask.tune([], name="a/b", steps=0)

    told = await ask.refused(tenant.tunes.CreateTune(request))

    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {"name", "details.lora_tune.files", "details.lora_tune.steps"} <= told.violations.keys()


async def test_unknown_checkpoint_and_unknown_file_are_told_at_once(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id, "asset_unknown"], checkpoint="nobody:x")))

    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(told.violations) == [
        "details.lora_tune.base_checkpoint.checkpoint_id",
        "details.lora_tune.files[1].file_id",
    ]


@pytest.mark.parametrize("validate_only", [False, True])
async def test_broken_rules_and_what_points_nowhere_are_told_at_once(
    tenant: Any, other: Any, ask: Any, validate_only: bool
) -> None:
    mine, theirs = (await tenant.upload(ask.png())).id, (await other.upload(ask.png())).id
    request = ask.tune(
        [mine, "asset_unknown", theirs, mine, "", "a\0b"], name="a:b", checkpoint="nobody:x", steps=0, priority=101
    )
    request.validate_only = validate_only

    told = await ask.refused(tenant.tunes.CreateTune(request))

    files = "details.lora_tune.files"
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert told.violations == {
        "name": "must have none of / ? # % : and no control characters; got 'a:b'",
        f"{files}": "names the same file_id more than once",
        f"{files}[4].file_id": "must be at least 1 characters; got ''",
        "details.lora_tune.steps": "must be greater than or equal to 1 and less than or equal to 100000; got 0",
        "priority": "must be greater than or equal to -100 and less than or equal to 100; got 101",
        f"{files}[5].file_id": "must not contain U+0000",
        f"{files}[3].file_id": f"'{mine}' is files[0] already",
        "details.lora_tune.base_checkpoint.checkpoint_id": "there is no asset 'nobody:x'",
        f"{files}[1].file_id": "there is no file 'asset_unknown'; wanted the id of one of your own",
        f"{files}[2].file_id": f"there is no file '{theirs}'; wanted the id of one of your own",
    }


async def test_nothing_is_told_of_what_stands_in_a_field_that_is_not_there(tenant: Any, ask: Any) -> None:
    bare = ask.tune([])
    bare.details.lora_tune.ClearField("base_checkpoint")
    armless = tune_service_pb2.CreateTuneRequest(name="n", details=tune_pb2.TuneDetails())

    told = [await ask.refused(tenant.tunes.CreateTune(request)) for request in (bare, armless)]

    assert told[0].violations.keys() == {"details.lora_tune.base_checkpoint", "details.lora_tune.files"}
    assert len(told[1].violations) == 1


async def test_checkpoint_that_will_not_do_is_told_beside_a_broken_rule(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())
    request = ask.tune([picture.id], name="..")
    request.details.lora_tune.base_checkpoint.engine = "image/flux-dev"

    told = await ask.refused(tenant.tunes.CreateTune(request))

    assert told.violations.keys() == {"name", "details.lora_tune.base_checkpoint.engine"}


async def test_broken_rules_are_told_though_the_database_is_away(
    tenant: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(database: Any, named: Any) -> Any:
        raise DatabaseAway("on purpose")

    monkeypatch.setattr(tunes, "unfit", away)

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune(["asset_unknown"], name="..")))

    assert (told.code, told.violations.keys()) == (grpc.StatusCode.INVALID_ARGUMENT, {"name"})


async def test_list_of_files_that_is_too_long_is_looked_at_as_far_as_it_may_go(
    tenant: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tunes.Named] = []

    async def unfit(database: Any, named: tunes.Named) -> Any:
        asked.append(named)
        return [("details.lora_tune.files[1].file_id", "of no use")]

    monkeypatch.setattr(tunes, "unfit", unfit)
    names = [f"asset_{number:020}" for number in range(30_000)]

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune(names)))

    assert told.violations == {
        "details.lora_tune.files": "must contain no more than 1000 item(s); got 30000",
        "details.lora_tune.files[1].file_id": "of no use",
    }
    assert [named.file_ids for named in asked] == [names[:1000]]


async def test_checkpoint_that_no_database_can_be_asked_for_is_told_by_its_rule(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id], checkpoint="a\0b")))

    assert told.violations == {"details.lora_tune.base_checkpoint.checkpoint_id": "must not contain U+0000"}


async def test_file_of_another_tenant_is_as_unknown_as_none(tenant: Any, other: Any, ask: Any) -> None:
    theirs = await other.upload(ask.png())

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([theirs.id])))
    unknown = await ask.refused(tenant.tunes.CreateTune(ask.tune(["asset_unknown"])))

    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    field = "details.lora_tune.files[0].file_id"
    assert told.violations[field] == unknown.violations[field].replace("asset_unknown", theirs.id)


async def test_file_must_be_named_by_its_id_and_be_ones_own_and_nothing_is_told_of_others(
    tenant: Any, service: Any, ask: Any
) -> None:
    house = await service.tenant("house", is_operator=True)
    shared = ask.file("shared")
    shared.is_public = True
    public = (await house.assets.CreateAsset(shared)).asset.id
    private = (await house.upload(ask.png())).id
    await tenant.upload(ask.png(), name="mine.png")

    names = ["mine.png", public, private, "asset_unknown"]
    told = await ask.refused(tenant.tunes.CreateTune(ask.tune(names)))

    assert list(told.violations.values()) == [
        f"there is no file {name!r}; wanted the id of one of your own" for name in names
    ]


async def test_picture_is_no_checkpoint(tenant: Any, ask: Any) -> None:
    picture = await tenant.upload(ask.png())

    told = await ask.refused(tenant.tunes.CreateTune(ask.tune([picture.id], checkpoint=picture.id)))

    assert "not a checkpoint" in told.violations["details.lora_tune.base_checkpoint.checkpoint_id"]


async def test_engine_must_be_the_checkpoints_own(tenant: Any, ask: Any) -> None:
    request = ask.tune([(await tenant.upload(ask.png())).id])
    request.details.lora_tune.base_checkpoint.engine = "image/flux-dev"

    told = await ask.refused(tenant.tunes.CreateTune(request))

    assert told.violations.keys() == {"details.lora_tune.base_checkpoint.engine"}


async def test_file_that_is_still_to_be_uploaded_may_be_named(tenant: Any, ask: Any) -> None:
    created = await tenant.assets.CreateAsset(ask.file())

    tune = await tenant.tunes.CreateTune(ask.tune([created.asset.id]))

    assert tune.status == tune_pb2.TUNE_STATUS_PENDING


async def test_wrong_key_is_refused(service: Any, ask: Any) -> None:
    stub = tune_service_pb2_grpc.TuneServiceStub(ask.keyed(service.address, "ts_wrong"))

    told = await ask.refused(stub.ListTunes(tune_service_pb2.ListTunesRequest()))

    assert told.code == grpc.StatusCode.UNAUTHENTICATED


async def test_tune_of_another_tenant_is_not_found(tenant: Any, other: Any, ask: Any) -> None:
    theirs = await other.create_tune()

    calls = [
        tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=theirs.id)),
        tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=theirs.id)),
        tenant.tunes.DeleteTune(tune_service_pb2.DeleteTuneRequest(id=theirs.id)),
        tenant.tunes.ListTuneEvents(tune_service_pb2.ListTuneEventsRequest(id=theirs.id)),
        tenant.tunes.WatchTune(tune_service_pb2.WatchTuneRequest(id=theirs.id)).read(),
    ]

    assert {(await ask.refused(call)).code for call in calls} == {grpc.StatusCode.NOT_FOUND}
    assert (await other.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=theirs.id))).id == theirs.id


async def test_list_gives_pages_newest_first_and_the_total(tenant: Any) -> None:
    made = [(await tenant.create_tune(f"tune {number}")).id for number in range(3)]

    first = await tenant.tunes.ListTunes(tune_service_pb2.ListTunesRequest(limit=2))
    rest = await tenant.tunes.ListTunes(tune_service_pb2.ListTunesRequest(limit=2, offset=2))

    assert [tune.id for tune in first.data] == [made[2], made[1]]
    assert (first.has_more, first.total) == (True, 3)
    assert [tune.id for tune in rest.data] == [made[0]]
    assert (rest.has_more, rest.total) == (False, 3)
    assert [tune.progress.queue_position for tune in first.data] == [3, 2]


@pytest.mark.parametrize(
    ("which", "found"),
    [
        ({"name": "tune"}, True),
        ({"name": "other"}, False),
        ({"tune_type": tune_pb2.TUNE_TYPE_LORA_TUNE}, True),
        ({"base_checkpoint_id": "tunesmith:tiny-shapes"}, True),
        ({"base_checkpoint_id": "asset_x"}, False),
        ({"trigger_words": ["sks"]}, True),
        ({"trigger_words": ["sks", "more"]}, False),
        ({"engine": "image/stable-diffusion-v1-5"}, True),
        ({"engine": "image/flux-dev"}, False),
    ],
)
async def test_list_filters(tenant: Any, which: dict[str, Any], found: bool) -> None:
    await tenant.create_tune()

    listed = await tenant.tunes.ListTunes(tune_service_pb2.ListTunesRequest(**which))

    assert listed.total == int(found)


async def test_pending_tune_is_cancelled_at_once_and_again_without_harm(tenant: Any) -> None:
    created = await tenant.create_tune()
    request = tune_service_pb2.CancelTuneRequest(id=created.id)

    first, again = await tenant.tunes.CancelTune(request), await tenant.tunes.CancelTune(request)

    assert first.status == tune_pb2.TUNE_STATUS_CANCELLED
    assert again == first
    assert not first.progress.HasField("pending_reason")


async def ended(service: Any, tune_id: str, how: str) -> None:
    """A trainer takes the tune, the only one that waits, and ends it so."""
    claim = await leases.claim(
        service.database, leases.Offer("trainer-1", ["image/stable-diffusion-v1-5"], 2**34, []), 60
    )
    assert claim is not None
    assert claim.lease.tune_id == tune_id
    await leases.accept(service.database, claim.lease)
    if how == "succeeded":
        lora = reports.LoraResult("loras/x", "c" * 64, 9, step=10, final_loss=0.1, pictures=1)
        await reports.finish(service.database, claim.lease, 1, lora)
    else:
        await reports.fail(service.database, claim.lease, 1, "BAD", "it broke", retryable=False, crashed=False)


@pytest.mark.parametrize("how", ["succeeded", "failed"])
async def test_finished_tune_comes_back_from_a_cancel_as_it_was(tenant: Any, service: Any, how: str) -> None:
    created = await tenant.create_tune()
    await ended(service, created.id, how)
    before = await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id))

    answer = await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))

    assert before.status == tune_pb2.TuneStatus.Value(f"TUNE_STATUS_{how.upper()}")
    assert answer == before
    assert await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id)) == before


async def test_deleted_tune_leaves_its_pictures_and_its_lora(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune("mine")
    await ended(service, created.id, "succeeded")
    [lora_id] = (await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id))).output_lora_ids

    await tenant.tunes.DeleteTune(tune_service_pb2.DeleteTuneRequest(id=created.id))

    for asset_id in (lora_id, created.details.lora_tune.files[0].file_id):
        left = await tenant.assets.GetAsset(asset_service_pb2.GetAssetRequest(id=asset_id))
        assert left.asset.status == asset_pb2.ASSET_STATUS_READY
        assert left.transfer_api.presigned_url.get_url
    named = await tenant.assets.GetAsset(asset_service_pb2.GetAssetRequest(id="mine"))
    assert named.asset.id == lora_id, "the LoRA bears the tune's name"


async def test_deleted_tune_is_gone_and_its_name_free(tenant: Any, ask: Any) -> None:
    created = await tenant.create_tune("mine")

    await tenant.tunes.DeleteTune(tune_service_pb2.DeleteTuneRequest(id=created.id))

    told = await ask.refused(tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id)))
    assert told.code == grpc.StatusCode.NOT_FOUND
    assert (await tenant.create_tune("mine", description="another")).id != created.id


async def test_events_are_listed_in_pages(tenant: Any) -> None:
    created = await tenant.create_tune()
    await tenant.tunes.CancelTune(tune_service_pb2.CancelTuneRequest(id=created.id))

    first = await tenant.tunes.ListTuneEvents(tune_service_pb2.ListTuneEventsRequest(id=created.id, limit=1))
    rest = await tenant.tunes.ListTuneEvents(tune_service_pb2.ListTuneEventsRequest(id=created.id, after_id=1))

    assert [event.id for event in first.data] == [1]
    assert first.has_more
    assert first.data[0].event.status_changed.status == tune_pb2.TUNE_STATUS_PENDING
    assert rest.data[-1].event.status_changed.status == tune_pb2.TUNE_STATUS_CANCELLED
    assert not rest.has_more


async def test_running_tune_is_told_as_running(tenant: Any, service: Any) -> None:
    created = await tenant.create_tune()
    offer = leases.Offer("trainer-1", ["image/stable-diffusion-v1-5"], 2**34, [])
    claim = await leases.claim(service.database, offer, 60)
    assert claim is not None

    assigned = await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id))
    await leases.accept(service.database, claim.lease)
    running = await tenant.tunes.GetTune(tune_service_pb2.GetTuneRequest(id=created.id))

    assert assigned.status == tune_pb2.TUNE_STATUS_PENDING
    assert assigned.progress.pending_reason == "a trainer is taking it on"
    assert running.status == tune_pb2.TUNE_STATUS_RUNNING
    assert (await tunes.find(service.database, tenant.id, created.id)).attempts == 1


@pytest.mark.parametrize(("given", "kept"), [(TRACEPARENT, TRACEPARENT), ("00-nonsense", None)])
async def test_tune_keeps_its_requests_trace_context_and_goes_on_without_a_wrong_one(
    service: Any, tenant: Any, ask: Any, given: str, kept: str | None
) -> None:
    picture = await tenant.upload(ask.png())

    created = await tenant.tunes.CreateTune(ask.tune([picture.id]), metadata=(("traceparent", given),))

    assert (await tunes.find(service.database, tenant.id, created.id)).traceparent == kept

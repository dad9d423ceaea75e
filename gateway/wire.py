"""Rows to messages and messages to rows: the only place that knows both. Called by the servicers; knows no rpc.

A row's JSON columns hold messages in the JSON profile (gateway.http.json), so they read as the API's own documents.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import structlog
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http import json as profile
from store.assets import AssetFilter, NewAsset
from store.estimates import Estimate
from store.fetches import NewFetch
from store.states import TuneState
from store.tables import Asset as AssetRow
from store.tables import Event as EventRow
from store.tables import Tune as TuneRow
from store.tunes import Named, NewTune, TuneFilter
from tunesmith.v1 import asset_pb2, asset_service_pb2, tune_pb2, tune_service_pb2

PAGE = 100  # how many a list answers where the caller does not say

#: data.file_format of a picture, by what the bytes are. The contract's list is closed: others are unknown.
PICTURE_FORMATS = {"jpeg": ("jpg", "jpeg"), "png": ("png",)}
#: Two words for one format: who looks for either finds both.
SAME_FORMAT = dict.fromkeys(PICTURE_FORMATS["jpeg"], PICTURE_FORMATS["jpeg"])

log = structlog.get_logger(__name__)
AnyMessage = TypeVar("AnyMessage", bound=Message)


# ---------------------------------------------------------------------------------------------------------------- tunes


def tune(row: TuneRow, *, queue_position: int | None = None, pending_reason: str | None = None) -> tune_pb2.Tune:
    """A tune's row as callers see it. The two others are known only for one that is pending."""
    message = tune_pb2.Tune(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        description=row.description,
        tune_type=tune_pb2.TUNE_TYPE_LORA_TUNE,
        details=tune_pb2.TuneDetails(lora_tune=read(row.details, tune_pb2.LoraTune())),
        status=tune_pb2.TuneStatus.Value(f"TUNE_STATUS_{row.state.public.upper()}"),
        status_details=row.status_details or pending_reason or "",
        output_lora_ids=row.output_lora_ids,
        result=result(row),
        created_at=timestamp(row.created_at),
        updated_at=timestamp(row.updated_at),
        succeeded_at=timestamp(row.succeeded_at),
        deleted_at=timestamp(row.deleted_at),
        progress=progress(row),
        metadata=row.metadata_,
        continue_on_rejection=row.continue_on_rejection,
        priority=row.priority,
    )
    if queue_position is not None:
        message.progress.queue_position = queue_position
    if pending_reason is not None:
        message.progress.pending_reason = pending_reason
    return message


def tune_without_id(row: TuneRow, estimate: Estimate | None) -> tune_pb2.Tune:
    """A tune that was checked and not stored."""
    message = tune(row)
    message.ClearField("id")
    if estimate is not None:
        message.estimate.seconds = estimate.seconds
        message.estimate.steps_per_second = estimate.steps_per_second
        message.estimate.tunes = estimate.tunes
    return message


def result(row: TuneRow) -> tune_pb2.TuneResult | None:
    """How the pictures fared; None until they have been judged."""
    if row.available is None and not (row.rejected or row.unready or row.output_lora_ids):
        return None
    return tune_pb2.TuneResult(
        number_of_available_assets=row.available,
        output_assets=row.output_lora_ids,
        rejected_assets=row.rejected,
        unready_assets=row.unready,
    )


def progress(row: TuneRow) -> tune_pb2.TuneProgress:
    """How far it is. Phase, speed and the time to go are said only while it runs."""
    message = tune_pb2.TuneProgress(step=row.step, steps=row.steps, loss=row.loss)
    if row.state is TuneState.RUNNING:
        message.phase = number(tune_pb2.TunePhase.DESCRIPTOR, "TUNE_PHASE_", row.phase)
        if row.steps_per_second:
            message.steps_per_second = row.steps_per_second
            message.eta_seconds = max(row.steps - row.step, 0) / row.steps_per_second
    return message


def new_tune(request: tune_service_pb2.CreateTuneRequest, *, tenant_id: str, traceparent: str | None = None) -> NewTune:
    """What CreateTune asks to be stored."""
    asked = request.details.lora_tune
    base = asked.base_checkpoint
    return NewTune(
        tenant_id=tenant_id,
        name=request.name,
        description=request.description,
        checkpoint_ref=base.checkpoint_id,
        checkpoint_engine=base.engine if base.HasField("engine") else None,
        details=profile.to_json(asked),
        files=[(file.file_id, file.caption or None) for file in asked.files],
        steps=asked.steps,
        trigger_words=list(asked.trigger_words),
        continue_on_rejection=request.continue_on_rejection,
        metadata=dict(request.metadata),
        priority=request.priority,
        request_id=request.request_id if request.HasField("request_id") else None,
        request_hash=request_hash(request),
        traceparent=traceparent,
    )


def named(request: tune_service_pb2.CreateTuneRequest, *, tenant_id: str) -> Named:
    """The assets that CreateTune names."""
    asked = request.details.lora_tune
    base = asked.base_checkpoint
    engine = base.engine if base.HasField("engine") else None
    return Named(tenant_id, base.checkpoint_id, engine, [file.file_id for file in asked.files])


def request_hash(request: tune_service_pb2.CreateTuneRequest) -> str:
    """SHA-256 of what is asked for, whichever id the request bears. Unset fields do not count, so that a field which a
    later version adds leaves the hashes of older requests as they are.
    """
    asked = MessageToDict(request, preserving_proto_field_name=True)
    asked.pop("request_id", None)
    asked.pop("validate_only", None)
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tune_filter(request: tune_service_pb2.ListTunesRequest) -> TuneFilter:
    """What ListTunes asks for. Every tune is a LoRA tune, so that a filter by that type lets all through."""
    return TuneFilter(
        name=given(request, "name"),
        base_checkpoint=given(request, "base_checkpoint_id"),
        trigger_words=list(request.trigger_words),
        engine=given(request, "engine"),
        limit=request.limit or PAGE,
        offset=request.offset,
    )


def event(row: EventRow) -> tune_pb2.TuneEvent:
    """An entry of a tune's log. One of a kind that this version does not know is sent with its id and no body."""
    message = tune_pb2.TuneEvent(id=row.seq, tune_id=row.tune_id, created_at=timestamp(row.created_at))
    message.event.SetInParent()
    if row.kind not in tune_pb2.TuneEventBody.DESCRIPTOR.fields_by_name:
        log.info(
            f"An event is of an unknown kind: {row.kind}", action="event_unknown", tune_id=row.tune_id, seq=row.seq
        )
        return message
    arm = getattr(message.event, row.kind)
    arm.SetInParent()
    read(row.body, arm)
    return message


# --------------------------------------------------------------------------------------------------------------- assets


def asset(row: AssetRow, *, preview_url: str | None = None) -> asset_pb2.Asset:
    """An asset's row as callers see it."""
    message = asset_pb2.Asset(
        id=row.id,
        asset_type=number(asset_pb2.AssetType.DESCRIPTOR, "ASSET_TYPE_", row.asset_type),
        name=row.name,
        description=row.description,
        size_bytes=row.size_bytes,
        status=number(asset_pb2.AssetStatus.DESCRIPTOR, "ASSET_STATUS_", row.status),
        status_details=row.status_details,
        status_info=ParseDict(row.status_info, Struct()) if row.status_info else None,
        created_at=timestamp(row.created_at),
        tenant_uuid=row.tenant_id,
        hf_repo=row.hf_repo,
        is_public=row.is_public,
        url=row.url,
    )
    if row.file_structure:
        message.file_structure = number(asset_pb2.FileStructure.DESCRIPTOR, "FILE_STRUCTURE_", row.file_structure)
    arm = getattr(message.data, row.asset_type)
    arm.SetInParent()
    read(row.data, arm)
    if row.asset_type != "file" and arm.file_format == asset_pb2.FILE_FORMAT_UNKNOWN:
        arm.ClearField("file_format")  # the older SDK has no such word of weights, and rows of before may hold it
    if preview_url and row.asset_type == "file":
        message.data.file.preview_url = preview_url
    return message


def new_asset(request: asset_service_pb2.CreateAssetRequest, *, tenant_id: str) -> NewAsset:
    """What CreateAsset asks to be stored."""
    arm = request.data.WhichOneof("data")
    assert arm is not None, "checked by the servicer"
    data = profile.to_json(getattr(request.data, arm))
    if arm != "file" and data["file_format"] == "unknown":  # as if unset, for filters too; see asset()
        data["file_format"] = None
    return NewAsset(
        tenant_id=tenant_id,
        asset_type=word(asset_pb2.AssetType.DESCRIPTOR, "ASSET_TYPE_", request.asset_type),
        name=request.name,
        description=request.description,
        data=data,
        is_public=request.is_public,
        skip_validation=request.skip_validation,
        source=None,
        hf_repo=request.hf_repo or None,
        url=shown(request.url) if request.url else None,
    )


def new_fetch(request: asset_service_pb2.CreateAssetRequest) -> NewFetch:
    """Where CreateAsset asks the bytes to be fetched from. The token is no part of it: it is not stored."""
    return NewFetch(url=request.url or None, hf_repo=request.hf_repo or None, skip_validation=request.skip_validation)


def shown(url: str) -> str:
    """A URL as everybody may see it who sees the asset: what is signed or a key stands in its query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def asset_filter(request: asset_service_pb2.ListAssetsRequest) -> AssetFilter:
    """What ListAssets asks for."""
    data_type = given(request, "data_type")
    return AssetFilter(
        name=given(request, "name"),
        is_public=given(request, "is_public"),
        data_type=word(asset_pb2.DataType.DESCRIPTOR, "DATA_TYPE_", data_type) if data_type else None,
        asset_types=[word(asset_pb2.AssetType.DESCRIPTOR, "ASSET_TYPE_", kind) for kind in request.asset_type if kind],
        engines=list(request.engine),
        engine_type=given(request, "engine_type"),
        file_formats=sorted({same for one in request.file_format for same in SAME_FORMAT.get(one, (one,))}),
        asset_ids=ids_in(request.asset_ids) if request.HasField("asset_ids") else None,
        owner=given(request, "owner"),
        limit=request.limit or PAGE,
        offset=request.offset,
    )


def ids_in(text: str) -> list[str]:
    """The ids in a list with commas; none where there is nothing between them."""
    return [one.strip() for one in text.split(",") if one.strip()]


def picture_data(data: Mapping[str, Any], found: str) -> dict[str, Any]:
    """A picture's data with the format found in its bytes. jpg and jpeg are one: the caller's spelling stays."""
    allowed = PICTURE_FORMATS.get(found, ("unknown",))
    asked = data.get("file_format")
    return {**data, "file_format": asked if asked in allowed else allowed[0]}


def weights_data(asset_type: str, data: Mapping[str, Any], data_type: str | None) -> dict[str, Any]:
    """The data of weights with what their header says; what the caller said of the number format stays."""
    if asset_type == "latent":
        return {**data, "file_format": "safetensors"}
    return {**data, "file_format": "safetensors", "data_type": data.get("data_type") or data_type}


def transfer(get_url: str = "", put_url: str = "") -> asset_pb2.TransferApi:
    """How the bytes go in or out; without a URL there is nothing to transfer."""
    if not get_url and not put_url:
        return asset_pb2.TransferApi(none=asset_pb2.NoTransferApi())
    return asset_pb2.TransferApi(presigned_url=asset_pb2.PresignedUrlTransferApi(get_url=get_url, put_url=put_url))


# --------------------------------------------------------------------------------------------------------------- pieces


def read(stored: Mapping[str, Any], message: AnyMessage) -> AnyMessage:
    """Reads a JSON column into a message. What does not fit was written by another version: it is left out."""
    faults = profile.from_json(dict(stored), message)
    if faults:
        name, places = message.DESCRIPTOR.full_name, [".".join(map(str, fault.loc)) for fault in faults]
        log.warning(f"A stored {name} does not fit at {', '.join(places)}", action="stored_json_unfit", message=name)
        # Where a value cannot be read, the reader leaves an empty one.
        message.Clear()
        profile.from_json(_without(dict(stored), [fault.loc for fault in faults]), message)
    return message


def _without(stored: dict[str, Any], places: Sequence[Sequence[str | int]]) -> dict[str, Any]:
    """A copy without what stands at the places. They are in the order of reading: the last of a list goes first."""
    left = copy.deepcopy(stored)
    for place in reversed(places):
        holder: Any = left
        with suppress(KeyError, IndexError, TypeError):  # what is missing was told too, and what goes with its whole
            for step in place[:-1]:
                holder = holder[step]
            del holder[place[-1]]
    return left


def timestamp(time: datetime | None) -> Timestamp | None:
    """A time; None stays unset."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def number(enum: EnumDescriptor, prefix: str, word: str | None) -> Any:  # noqa: ANN401  - each enum's own type
    """An enum's value by the word that rows hold; 0 where there is none, or one that this version does not know."""
    value = enum.values_by_name.get(prefix + (word or "unspecified").upper())
    return value.number if value is not None else 0


def word(enum: EnumDescriptor, prefix: str, value: int) -> str:
    """The word that rows hold for an enum's value; empty for one that this version does not know."""
    known = enum.values_by_number.get(value)
    return "" if known is None else known.name.removeprefix(prefix).lower()


def given(message: Message, field: str) -> Any:  # noqa: ANN401  - each field's own type
    """An optional field's value; None where it is unset. A string without content is a value: nothing is called so."""
    return getattr(message, field) if message.HasField(field) else None

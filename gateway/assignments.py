"""Makes an Assign of a claim, and signs what an attempt may touch. Called by the dispatcher and by sessions; knows the
store's rows and the stream's messages, no stream.

    GET  pictures/{file id}, checkpoint, snapshot     the attempt's own, by the tune's row
    PUT  lora.safetensors, snapshots/..., samples/... under incoming/{tune}/{epoch}/, and nowhere else
"""

from __future__ import annotations

import contextlib
import re
import time

from google.protobuf.duration_pb2 import Duration

from gateway import wire
from store import assets
from store.database import Database
from store.errors import NotFound
from store.leases import Claim, LeaseRef
from store.objects import Objects
from store.tables import Asset, Tune
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

URL_SECONDS = 3600.0  # a signed URL's life
PUTS = re.compile(
    r"(?P<weights>lora\.safetensors|snapshots/\d{1,9}\.safetensors)|samples/\d{1,9}-\d{1,4}\.png|losses\.jsonl",
    re.ASCII,  # a digit of another script is none in a key
)
# What an upload may weigh. A snapshot holds the LoRA three times over in 32 bits; of rank 128 on SDXL that is 4.2 GB.
# S3 takes no more in one PUT either.
MOST_WEIGHTS_BYTES = 5 * 2**30
MOST_OTHER_BYTES = 64 * 2**20
MESSAGE_LIMIT = 3_500_000  # bytes; gRPC's default limit is 4 MiB, and captions may fill it


def incoming(lease: LeaseRef, name: str) -> str:
    """The key that an attempt uploads an object to."""
    return f"incoming/{lease.tune_id}/{lease.epoch}/{name}"


async def assign(claim: Claim, objects: Objects, lease_seconds: float) -> pb.Assign:
    """The claim as the trainer needs it, with signed URLs."""
    tune = claim.tune
    message = pb.Assign(
        lease=pb.Lease(tune_id=tune.id, epoch=claim.lease.epoch),
        lease_duration=duration(lease_seconds),
        engine=tune.engine,
        request=wire.read(tune.details, tune_pb2.LoraTune()),
        continue_on_rejection=tune.continue_on_rejection,
        pictures=[await _picture(asset, caption, objects) for asset, caption in claim.files],
        checkpoint=await _checkpoint(claim.checkpoint, objects),
        traceparent=tune.traceparent or "",
    )
    message.request.ClearField("files")  # they are the pictures
    if tune.resolved_recipe is not None:
        message.resolved_recipe.json = tune.resolved_recipe
        message.resolved_recipe.sha256 = tune.resolved_recipe_sha256 or ""
    if claim.snapshot is not None:
        message.snapshot.step = claim.snapshot.step
        message.snapshot.sha256 = claim.snapshot.sha256
        message.snapshot.size_bytes = claim.snapshot.size_bytes
        message.snapshot.url = await objects.sign_get(claim.snapshot.object_key, URL_SECONDS)
    if message.ByteSize() > MESSAGE_LIMIT:
        for picture in message.pictures:  # the trainer asks for what it has no URL of
            picture.ClearField("url")
    return message


async def sign(database: Database, objects: Objects, tune: Tune, request: pb.UrlRequest) -> pb.Urls:
    """Signed URLs of what the attempt may touch; the rest is left out."""
    keys = await _readable(
        database, tune, [wanted.name for wanted in request.objects if wanted.method == pb.METHOD_GET]
    )
    answer = pb.Urls(request_id=request.request_id)
    expires_at = int(time.time() + URL_SECONDS)
    for wanted in request.objects:
        if wanted.method == pb.METHOD_GET and wanted.name in keys:
            url = await objects.sign_get(keys[wanted.name], URL_SECONDS)
        elif wanted.method == pb.METHOD_PUT and (known := PUTS.fullmatch(wanted.name)):
            key = incoming(LeaseRef(tune.id, request.lease.epoch, ""), wanted.name)
            most_bytes = MOST_WEIGHTS_BYTES if known["weights"] else MOST_OTHER_BYTES
            url = await objects.sign_direct_put(key, URL_SECONDS, most_bytes=most_bytes, owner=tune.tenant_id)
        else:
            continue
        answer.urls.add(object=wanted, url=url).expires_at.FromSeconds(expires_at)
    return answer


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


async def _readable(database: Database, tune: Tune, names: list[str]) -> dict[str, str]:
    """Name -> key of those objects that the attempt may read."""
    keys: dict[str, str | None] = {}
    own = {f"pictures/{file_id}": file_id for file_id, _ in tune.files}
    if wanted := [own[name] for name in names if name in own]:
        found = await assets.find_many(database, tune.tenant_id, wanted)
        keys = {f"pictures/{file_id}": asset.object_key for file_id, asset in found.items()}
    if "snapshot" in names:
        keys["snapshot"] = tune.snapshot_key
    if "checkpoint" in names:
        with contextlib.suppress(NotFound):  # deleted since: no new URL of it
            keys["checkpoint"] = (await assets.find(database, tune.tenant_id, tune.checkpoint_id)).object_key
    return {name: key for name, key in keys.items() if key is not None}


async def _picture(asset: Asset, caption: str | None, objects: Objects) -> pb.Picture:
    assert asset.object_key is not None  # the claim hands out only good pictures
    return pb.Picture(
        file_id=asset.id,
        caption=caption or "",
        sha256=asset.sha256 or "",
        size_bytes=asset.size_bytes,
        url=await objects.sign_get(asset.object_key, URL_SECONDS),
    )


async def _checkpoint(asset: Asset, objects: Objects) -> pb.Checkpoint:
    source = asset.source or {}
    if "builtin" in source:
        return pb.Checkpoint(builtin=pb.BuiltinCheckpoint(name=source["builtin"], sha256=asset.sha256 or ""))
    if "hugging_face" in source:
        there = pb.HuggingFaceCheckpoint(repository=source["hugging_face"], commit=source["commit"])
        return pb.Checkpoint(hugging_face=there)
    assert asset.object_key is not None  # a tune's checkpoint is ready
    url = await objects.sign_get(asset.object_key, URL_SECONDS)
    return pb.Checkpoint(object=pb.ObjectCheckpoint(sha256=asset.sha256 or "", size_bytes=asset.size_bytes, url=url))

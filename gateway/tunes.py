"""TuneService: translates a call, asks the store for one thing, translates back. Served by the server, over gRPC and
through the HTTP shim; what a caller may do was decided by the interceptors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from gateway import wire
from gateway.interceptors import caller
from gateway.places import Places
from gateway.status import Refusal
from gateway.watch import Closing, Watch
from store import assets, events, tunes
from store.database import Database
from store.errors import InvalidReference, NotFound
from store.tables import Asset, Tune
from store.tunes import NewTune, Submitted
from tunesmith.v1 import tune_pb2, tune_service_pb2, tune_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
CHECKPOINT = "details.lora_tune.base_checkpoint"  # where a request names it


class TuneService(tune_service_pb2_grpc.TuneServiceServicer):
    """See protos/tunesmith/v1/tune_service.proto for what each rpc promises."""

    def __init__(self, database: Database, watch: Watch) -> None:
        self._database = database
        self._watch = watch
        self._places = Places(database)

    async def CreateTune(  # noqa: N802  - the proto's name, as all below
        self, request: tune_service_pb2.CreateTuneRequest, context: Context
    ) -> tune_pb2.Tune:
        """Stores a tune, or only checks it."""
        new, faults = await self._new_tune(request)
        if request.validate_only:
            return wire.tune_without_id(await self._check(new, faults))
        if faults:
            submitted = Submitted(await self._check(new, faults), replayed=True)
        else:
            submitted = await tunes.submit(self._database, new)
        if submitted.replayed:
            await context.send_initial_metadata((("idempotent-replay", "true"),))
        return await self._standing(submitted.tune)

    async def GetTune(  # noqa: N802
        self, request: tune_service_pb2.GetTuneRequest, context: Context
    ) -> tune_pb2.Tune:
        """Finds one."""
        return await self._standing(await tunes.find(self._database, caller().tenant_id, request.id))

    async def ListTunes(  # noqa: N802
        self, request: tune_service_pb2.ListTunesRequest, context: Context
    ) -> tune_service_pb2.ListTunesResponse:
        """Lists a page."""
        rows, total = await tunes.list_tunes(self._database, caller().tenant_id, wire.tune_filter(request))
        more = request.offset + len(rows) < total
        return tune_service_pb2.ListTunesResponse(data=await self._standings(rows), has_more=more, total=total)

    async def CancelTune(  # noqa: N802
        self, request: tune_service_pb2.CancelTuneRequest, context: Context
    ) -> tune_pb2.Tune:
        """Cancels one."""
        return await self._standing(await tunes.cancel(self._database, caller().tenant_id, request.id))

    async def DeleteTune(  # noqa: N802
        self, request: tune_service_pb2.DeleteTuneRequest, context: Context
    ) -> Empty:
        """Deletes one."""
        await tunes.delete(self._database, caller().tenant_id, request.id)
        return Empty()

    async def WatchTune(  # noqa: N802
        self, request: tune_service_pb2.WatchTuneRequest, context: Context
    ) -> AsyncIterator[tune_pb2.TuneEvent]:
        """Follows one."""
        following = self._watch.follow(caller().tenant_id, request.id, request.after_id)
        try:
            async with aclosing(following):
                async for row in following:
                    yield wire.event(row)
        except Closing as exc:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", str(exc), retry_after_seconds=0) from exc

    async def ListTuneEvents(  # noqa: N802
        self, request: tune_service_pb2.ListTuneEventsRequest, context: Context
    ) -> tune_service_pb2.ListTuneEventsResponse:
        """Lists a page of one's events."""
        await tunes.find(self._database, caller().tenant_id, request.id)
        limit = request.limit or wire.PAGE
        rows = await events.list_events(self._database, request.id, request.after_id, limit + 1)
        data = [wire.event(row) for row in rows[:limit]]
        return tune_service_pb2.ListTuneEventsResponse(data=data, has_more=len(rows) > limit)

    async def _new_tune(self, request: tune_service_pb2.CreateTuneRequest) -> tuple[NewTune, list[tuple[str, str]]]:
        """The request with its checkpoint looked up, and what stands against that."""
        tenant_id = caller().tenant_id
        checkpoint, faults = await self._checkpoint(tenant_id, request.details.lora_tune.base_checkpoint)
        return wire.new_tune(request, tenant_id=tenant_id, checkpoint=checkpoint), faults

    async def _check(self, new: NewTune, faults: list[tuple[str, str]]) -> Tune:
        """The tune as it would be. With faults only one that this request made before: it outlives its checkpoint.

        Raises:
            InvalidReference: The faults, and with them those of the files.
        """
        try:
            checked = await tunes.check(self._database, new)
        except InvalidReference as exc:
            others = [fault for fault in exc.violations if not faults or not fault[0].startswith(CHECKPOINT)]
            raise InvalidReference([*faults, *others]) from exc
        if faults and not checked.id:
            raise InvalidReference(faults)
        return checked

    async def _checkpoint(
        self, tenant_id: str, asked: tune_pb2.LoraTuneCheckpoint
    ) -> tuple[Asset | None, list[tuple[str, str]]]:
        """The checkpoint, and what stands against it."""
        path = f"{CHECKPOINT}.checkpoint_id"
        try:
            found = await assets.find(self._database, tenant_id, asked.checkpoint_id)
        except NotFound:
            return None, [(path, f"there is no asset {asked.checkpoint_id!r}")]
        if found.asset_type != "checkpoint":
            return found, [(path, f"the asset {asked.checkpoint_id!r} is a {found.asset_type}, and not a checkpoint")]
        if found.status != "ready":
            return found, [(path, f"the checkpoint {asked.checkpoint_id!r} is {found.status}, and not ready")]
        if asked.HasField("engine") and asked.engine != found.engine:
            return found, [(f"{CHECKPOINT}.engine", f"the checkpoint's engine is {found.engine!r}")]
        return found, []

    async def _standing(self, row: Tune) -> tune_pb2.Tune:
        return (await self._standings([row]))[0]

    async def _standings(self, rows: Sequence[Tune]) -> list[tune_pb2.Tune]:
        """The rows as messages, those that are pending with their place in the queue and the reason."""
        found = [await self._places.standing(row) for row in rows]
        return [
            wire.tune(row, queue_position=place, pending_reason=reason)
            for row, (place, reason) in zip(rows, found, strict=True)
        ]

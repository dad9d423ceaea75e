"""TuneService: translates a call, asks the store for one thing, translates back. Served by the server, over gRPC and
through the HTTP shim; what a caller may do was decided by the interceptors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from gateway import wire
from gateway.faults import also_found_by
from gateway.interceptors import caller, traceparent
from gateway.places import Places
from gateway.status import Refusal, Violation
from gateway.watch import Closing, Watch
from store import estimates, events, tunes
from store.database import Database
from store.errors import InvalidReference
from store.states import TuneState
from store.tables import Tune
from tunesmith.v1 import tune_pb2, tune_service_pb2, tune_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class TuneService(tune_service_pb2_grpc.TuneServiceServicer):
    """See protos/tunesmith/v1/tune_service.proto for what each rpc promises."""

    def __init__(self, database: Database, watch: Watch) -> None:
        self._database = database
        self._watch = watch
        self._places = Places(database)

    async def _unfit(self, request: tune_service_pb2.CreateTuneRequest) -> list[Violation]:
        """What a request that breaks rules names wrongly besides."""
        if not request.details.HasField("lora_tune"):
            return []
        named = wire.named(request, tenant_id=caller().tenant_id)
        unfit = await tunes.unfit(self._database, named)
        return [*_twice(named), *(Violation(path, text, InvalidReference.reason) for path, text in unfit)]

    @also_found_by(_unfit)
    async def CreateTune(  # noqa: N802  - the proto's name, as all below
        self, request: tune_service_pb2.CreateTuneRequest, context: Context
    ) -> tune_pb2.Tune:
        """Stores a tune, or only checks it."""
        new = wire.new_tune(request, tenant_id=caller().tenant_id, traceparent=traceparent())
        if request.validate_only:
            checked = await tunes.check(self._database, new)
            fails = checked.state is TuneState.FAILED
            estimate = None if fails else await estimates.estimate(self._database, checked)
            return wire.tune_without_id(checked, estimate)
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

    async def _standing(self, row: Tune) -> tune_pb2.Tune:
        return (await self._standings([row]))[0]

    async def _standings(self, rows: Sequence[Tune]) -> list[tune_pb2.Tune]:
        """The rows as messages, those that are pending with their place in the queue and the reason."""
        found = [await self._places.standing(row) for row in rows]
        return [
            wire.tune(row, queue_position=place, pending_reason=reason)
            for row, (place, reason) in zip(rows, found, strict=True)
        ]


def _twice(named: tunes.Named) -> Iterator[Violation]:
    """Which files are named again, where the rule (files.unique) says no more than that some are."""
    first: dict[str, int] = {}
    for place, file_id in enumerate(named.file_ids):
        if file_id and first.setdefault(file_id, place) != place:
            text = f"{file_id[:128]!r} is files[{first[file_id]}] already"
            yield Violation(f"details.lora_tune.files[{place}].file_id", text, "FILES_UNIQUE")

"""An upload's way from incoming/ to its final key. Called by the asset servicer; knows objects, judges and the store's
assets, and no message.

    incoming/assets/ID  --move-->  assets/ID/unjudged-NONCE  --judged, hashed, moved-->  assets/ID/SHA256
    a PUT is signed for it         none ever was, and no other call moves anything there: what is judged is what is
                                   kept; a gateway that dies on the way leaves it, and the next CompleteUpload goes on
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import grpc
import structlog

from gateway import weights, wire
from gateway.judges import Judges
from gateway.metrics import Metrics
from gateway.status import Refusal
from gateway.turns import Turns
from store import assets
from store.database import Database
from store.errors import DatabaseAway, NotFound, StateForbids
from store.leftovers import UNJUDGED
from store.objects import Objects
from store.objects.base import ObjectMissing, ObjectReplaced
from store.objects.opening import opened
from store.tables import Asset

# Completed at a time, and of these one tenant's. Each picture is copied to this host's disk. Weights take minutes where
# they are large, and up to 130 MB of memory where S3 cannot move them by itself; no picture waits for them.
PICTURES = (8, 4)
WEIGHTS = (4, 2)
JUDGED = ("ready", "rejected")

log = structlog.get_logger(__name__)


def incoming_key(asset_id: str) -> str:
    """Where a caller may PUT."""
    return f"incoming/assets/{asset_id}"


class Uploads:
    """Completes uploads."""

    def __init__(
        self,
        database: Database,
        objects: Objects,
        judges: Judges,
        metrics: Metrics,
        *,
        max_picture_bytes: int,
        max_weights_bytes: int,
    ) -> None:
        self._database = database
        self._objects = objects
        self._judges = judges
        self._metrics = metrics
        self._max_bytes = {"file": max_picture_bytes}
        self._max_weights_bytes = max_weights_bytes
        self._picture_turns, self._weights_turns = Turns(*PICTURES), Turns(*WEIGHTS)
        # One lock an asset that is being completed here; another gateway's attempt meets ours in the store.
        # A lock is there for as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_way: dict[tuple[str, str, bool | None], asyncio.Task[Asset]] = {}  # by what was asked

    def most_bytes(self, asset_type: str) -> int:
        """The size that an asset of the type may have."""
        return self._max_bytes.get(asset_type, self._max_weights_bytes)

    async def check_put(self, key: str) -> None:
        """Whether what is put there can still become an asset's. Its signed URL opens for an hour, and the verdict may
        come in the first minute of it.

        Raises:
            StateForbids: The asset is judged or deleted.
        """
        asset_id = key.removeprefix(incoming_key(""))
        if asset_id == key:
            return  # a trainer's: reports say what is wanted of these
        try:
            status = await assets.status_of(self._database, asset_id)
        except DatabaseAway:
            return  # to store bytes no database is needed; to complete the upload it will be
        if status is not None and status not in UNJUDGED:
            sentence = f"asset {asset_id} is {status}: bytes that are put now would change nothing; create a new asset"
            raise StateForbids(sentence)

    async def complete(self, tenant_id: str, asset_id: str, *, skip_validation: bool | None = None) -> Asset:
        """Judges what was uploaded. An asset that was judged before comes back as it is.

        Goes on where its caller has left: to move and hash gigabytes takes longer than many callers wait. Who asks the
        same again joins it.

        Args:
            skip_validation: Weights are taken as they are. None: as the asset was made.

        Raises:
            NotFound: The tenant has no such asset.
            StateForbids: It is in error.
            Refusal: Nothing was uploaded, or too much.
        """
        asked = tenant_id, asset_id, skip_validation
        if asked not in self._under_way:
            task = self._under_way[asked] = asyncio.create_task(self._complete(*asked))
            task.add_done_callback(partial(self._completed, asked))
        return await asyncio.shield(self._under_way[asked])

    async def close(self) -> None:
        """Ends what is still under way; whoever asks another gateway for it goes on with it."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _completed(self, asked: tuple[str, str, bool | None], task: asyncio.Task[Asset]) -> None:
        del self._under_way[asked]
        if not task.cancelled() and (exc := task.exception()) is not None:  # who has left does not hear of it
            asset_id = asked[1][:128]  # the caller's own words, and no longer than a name
            log.info(f"An upload was not completed: {str(exc)[:200]}", action="upload_not_completed", asset_id=asset_id)

    async def _complete(self, tenant_id: str, asset_id: str, skip_validation: bool | None) -> Asset:
        async with self._locks.setdefault(asset_id, asyncio.Lock()):
            row = await self._find(tenant_id, asset_id)
            turns = self._picture_turns if row.asset_type == "file" else self._weights_turns
            async with turns.taken(tenant_id):
                for last in (False, True):
                    row = await self._find(tenant_id, asset_id)  # as it is now: we may have waited
                    if row.status in JUDGED:
                        return row
                    if row.status not in UNJUDGED:
                        details = row.status_details.rstrip(".")
                        raise StateForbids(f"asset {asset_id} is in {row.status} ({details}): create a new asset")
                    try:
                        return await self._judge(
                            row, row.skip_validation if skip_validation is None else skip_validation
                        )
                    except ObjectMissing:  # another gateway judges it too, and was faster: its verdict stands
                        if last:
                            raise
        raise AssertionError("returned or raised")

    async def _find(self, tenant_id: str, asset_id: str) -> Asset:
        """Only by its id, and only the tenant's own: others are not theirs to complete."""
        row = await assets.find(self._database, tenant_id, asset_id)
        if row.id != asset_id or row.tenant_id != tenant_id:
            raise NotFound(f"there is no asset {asset_id}")
        return row

    async def _judge(self, row: Asset, skip_validation: bool) -> Asset:
        key, size_bytes = await self._take(row)
        if row.asset_type == "file":
            return await self._judge_picture(row, key)
        return await self._judge_weights(row, key, size_bytes, skip_validation)

    async def _take(self, row: Asset) -> tuple[str, int]:
        """Moves the bytes out of every caller's reach; answers where they are and how many."""
        key = f"assets/{row.id}/unjudged-{secrets.token_hex(8)}"
        try:
            await self._objects.move(incoming_key(row.id), key)
        except ObjectReplaced as exc:
            sentence = f"another PUT for {row.id} ended while the bytes of an earlier one were taken: complete it again"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_REPLACED", sentence) from exc
        except ObjectMissing:
            pass  # a gateway may have died on the way: see below
        # Then they lie here already, or under their hash and only the row is late.
        found = {there: stat.size_bytes async for there, stat in self._objects.list(f"assets/{row.id}/")}
        if not found:
            sentence = f"nothing was uploaded for {row.id}: PUT its bytes to the put_url first"
            if row.url or row.hf_repo:
                sentence = f"{row.id} is still being fetched, and completed when its bytes are there: GET it to see"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_UPLOADED", sentence)
        key = key if key in found else min(found)
        most = self.most_bytes(row.asset_type)  # it may have been another one when the URL was signed
        if found[key] > most:
            await self._objects.delete(key)
            sentence = f"the upload has {found[key]} bytes; at most {most} are allowed"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_TOO_LARGE", sentence, http_status=413)
        return key, found[key]

    async def _judge_picture(self, row: Asset, key: str) -> Asset:
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            path = Path(folder, "picture")
            await self._copy(key, path)
            judgement = await self._judges.judge(path)
        self._metrics.judged(judgement.reason)
        if not judgement.accepted:
            return await self._reject(row, key, judgement.reason, judgement.details)
        data = wire.picture_data(row.data, judgement.format)
        return await self._keep(row, key, judgement.sha256, judgement.size_bytes, data)

    async def _judge_weights(self, row: Asset, key: str, size_bytes: int, skip_validation: bool) -> Asset:
        data = dict(row.data)
        if not skip_validation:
            try:
                found = await self._look_at_weights(key, size_bytes)
            except weights.BadWeights as bad:
                return await self._reject(row, key, bad.reason, bad.details)
            data = wire.weights_data(row.asset_type, data, found.data_type)
        sha256, size_bytes = await self._objects.hash(key)
        return await self._keep(row, key, sha256, size_bytes, data)

    async def _look_at_weights(self, key: str, size_bytes: int) -> weights.Weights:
        start = await self._read(key, 0, weights.PREFIX)
        length = weights.header_bytes(start, size_bytes)
        header = await self._read(key, weights.PREFIX, weights.PREFIX + length)
        return await asyncio.to_thread(weights.judge, header, size_bytes)

    async def _keep(self, row: Asset, key: str, sha256: str, size_bytes: int, data: dict[str, Any]) -> Asset:
        final = f"assets/{row.id}/{sha256}"
        if key != final:
            await self._objects.move(key, final)
        log.info(f"{row.name} is uploaded and good", action="asset_ready", asset_id=row.id, size_bytes=size_bytes)
        return await assets.complete(
            self._database, row.tenant_id, row.id, size_bytes=size_bytes, sha256=sha256, object_key=final, data=data
        )

    async def _reject(self, row: Asset, key: str, reason: str, details: str) -> Asset:
        log.info(f"{row.name} is refused: {details}", action="asset_rejected", asset_id=row.id, reason=reason)
        rejected = await assets.reject(self._database, row.tenant_id, row.id, reason, details)
        # After the verdict is stored: until then a repeated call must find what it is to judge.
        await self._objects.delete(key)
        return rejected

    async def _copy(self, key: str, path: Path) -> None:
        file = await opened(asyncio.to_thread(path.open, "wb"))
        try:
            async for chunk in self._objects.read(key):
                await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)

    async def _read(self, key: str, start: int, end: int) -> bytes:
        return b"".join([chunk async for chunk in self._objects.read(key, start, end)])

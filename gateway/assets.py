"""AssetService: translates a call, asks the store for one thing, translates back. Served by the server, over gRPC and
through the HTTP shim; what becomes of an upload is in uploads.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc

from gateway import urls, wire
from gateway.faults import also_found_by
from gateway.fetches import Fetches
from gateway.hub import REPOSITORY
from gateway.interceptors import caller
from gateway.status import Refusal, Violation, invalid
from gateway.uploads import Uploads, incoming_key
from store import assets
from store.database import Database
from store.objects import Objects
from store.tables import Asset
from tunesmith.v1 import asset_pb2, asset_service_pb2, asset_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
URL_SECONDS = 3600.0  # that a signed URL lasts; its expiry is checked when a request starts
MAY_HOLD_TOKEN = re.compile(r"[@?&=:]|hf_")  # a repository's URL, or the token itself in its place
TOKEN = re.compile(r"[\x21-\x7e]+")  # it goes into a header


class AssetService(asset_service_pb2_grpc.AssetServiceServicer):
    """See protos/tunesmith/v1/asset_service.proto for what each rpc promises."""

    def __init__(self, database: Database, objects: Objects, uploads: Uploads, fetches: Fetches | None = None) -> None:
        self._database = database
        self._objects = objects
        self._uploads = uploads
        self._fetches = fetches

    async def _faults(self, request: asset_service_pb2.CreateAssetRequest) -> list[Violation]:
        """What is wrong with a request that no rule can say. It may break rules besides."""
        kind = wire.word(asset_pb2.AssetType.DESCRIPTOR, "ASSET_TYPE_", request.asset_type)
        return [*data_faults(request, kind), *fetch_faults(request, kind), *self._url_faults(request)]

    @also_found_by(_faults)
    async def CreateAsset(  # noqa: N802  - the proto's name, as all below
        self, request: asset_service_pb2.CreateAssetRequest, context: Context
    ) -> asset_service_pb2.CreateAssetResponse:
        """Stores an asset that waits for its bytes, which the caller uploads or a gateway fetches."""
        if faults := await self._faults(request):
            raise invalid(faults)
        if request.is_public and not caller().is_operator:
            sentence = "only the operator's tenant may publish assets"
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "OPERATOR_ONLY", sentence)
        if request.url or request.hf_repo:
            fetcher = self._fetcher(request)
            token = request.hf_token_secret if request.HasField("hf_token_secret") else None
            new = wire.new_asset(request, tenant_id=caller().tenant_id)
            row = await fetcher.order(new, wire.new_fetch(request), token)
        else:
            row = await assets.create(self._database, wire.new_asset(request, tenant_id=caller().tenant_id))
        return asset_service_pb2.CreateAssetResponse(
            asset=wire.asset(row), token=row.id, transfer_api=await self._transfer(row)
        )

    async def CompleteUpload(  # noqa: N802
        self, request: asset_service_pb2.CompleteUploadRequest, context: Context
    ) -> asset_service_pb2.CompleteUploadResponse:
        """Has the bytes judged."""
        skips = request.skip_validation if request.HasField("skip_validation") else None
        await self._uploads.complete(caller().tenant_id, request.id, skip_validation=skips)
        return asset_service_pb2.CompleteUploadResponse()

    async def GetAsset(  # noqa: N802
        self, request: asset_service_pb2.GetAssetRequest, context: Context
    ) -> asset_service_pb2.GetAssetResponse:
        """Finds one."""
        row = await assets.find(self._database, caller().tenant_id, request.id)
        return asset_service_pb2.GetAssetResponse(asset=wire.asset(row), transfer_api=await self._transfer(row))

    async def ListAssets(  # noqa: N802
        self, request: asset_service_pb2.ListAssetsRequest, context: Context
    ) -> asset_service_pb2.ListAssetsResponse:
        """Lists a page."""
        rows, total = await assets.list_assets(self._database, caller().tenant_id, wire.asset_filter(request))
        data = [wire.asset(row, preview_url=await self._preview(row, request.get_preview_urls)) for row in rows]
        more = request.offset + len(rows) < total
        return asset_service_pb2.ListAssetsResponse(data=data, has_more=more, total=total)

    async def DeleteAsset(  # noqa: N802
        self, request: asset_service_pb2.DeleteAssetRequest, context: Context
    ) -> asset_service_pb2.DeleteAssetResponse:
        """Deletes one."""
        row = await assets.delete(self._database, caller().tenant_id, request.id)
        return asset_service_pb2.DeleteAssetResponse(id=row.id, deleted_at=wire.timestamp(row.deleted_at))

    async def _transfer(self, row: Asset) -> asset_pb2.TransferApi:
        """Its bytes where they are good, a place for them where they are still to be uploaded, else nothing."""
        if row.status == "ready_to_upload" and (row.url or row.hf_repo):  # a gateway brings them
            return wire.transfer()
        if row.status == "ready" and row.object_key:
            return wire.transfer(get_url=await self._objects.sign_get(row.object_key, URL_SECONDS))
        if row.status == "ready_to_upload" and row.tenant_id == caller().tenant_id:
            most_bytes = self._uploads.most_bytes(row.asset_type)
            put_url = await self._objects.sign_put(
                incoming_key(row.id), URL_SECONDS, most_bytes=most_bytes, owner=row.tenant_id
            )
            return wire.transfer(put_url=put_url)
        return wire.transfer()

    def _fetcher(self, request: asset_service_pb2.CreateAssetRequest) -> Fetches:
        """Who fetches it.

        Raises:
            Refusal: Nobody does.
        """
        if self._fetches is None or (request.hf_repo and not self._fetches.has_hub):
            sentence = "fetching by the gateway is not configured: upload the bytes to the put_url instead"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "FETCHING_NOT_CONFIGURED", sentence)
        return self._fetches

    def _url_faults(self, request: asset_service_pb2.CreateAssetRequest) -> Iterator[Violation]:
        """Why the URL will never do. Which addresses may be asked is known only where something is fetched."""
        if not request.url:
            return
        if self._fetches is None:
            yield from (Violation("url", sentence, "URL_NOT_ALLOWED") for sentence in urls.judged(request.url)[1])
            return
        for fault in self._fetches.faults(request.url):
            yield Violation("url", fault.sentence, fault.reason)

    async def _preview(self, row: Asset, wanted: bool) -> str | None:
        if not wanted or row.asset_type != "file" or row.status != "ready" or not row.object_key:
            return None
        return await self._objects.sign_get(row.object_key, URL_SECONDS)


def data_faults(request: asset_service_pb2.CreateAssetRequest, kind: str) -> Iterator[Violation]:
    """Whether what is particular to a type is that of its type. That each is given is for the rules to say."""
    arm = request.data.WhichOneof("data")
    if arm is not None and arm != kind and kind in asset_pb2.AssetData.DESCRIPTOR.fields_by_name:
        yield Violation("data", f"its asset_type is {arm!r}; asset_type is {kind!r}", "ASSET_TYPE_MISMATCH")


def fetch_faults(request: asset_service_pb2.CreateAssetRequest, kind: str) -> Iterator[Violation]:
    """What is wrong with where the bytes are to be fetched from. Given is also what could not be read."""
    if request.HasField("url") and request.HasField("hf_repo"):
        yield Violation("hf_repo", "wanted url or hf_repo, and both are given", "TWO_SOURCES")
    if request.HasField("hf_token_secret") and not request.HasField("hf_repo"):
        yield Violation("hf_token_secret", "it opens hf_repo alone, and that is not given", "TOKEN_WITHOUT_REPO")
    if request.hf_token_secret and not TOKEN.fullmatch(request.hf_token_secret):
        # Not repeated: it is a secret, also where it is mistyped.
        yield Violation("hf_token_secret", "wanted printable ASCII characters without spaces", "NOT_A_TOKEN")
    if request.hf_repo and not REPOSITORY.fullmatch(request.hf_repo):
        wanted = "wanted OWNER/NAME, each 1 to 96 of a-z A-Z 0-9 . _ - and a letter or digit first"
        shown = "" if MAY_HOLD_TOKEN.search(request.hf_repo) else f"{request.hf_repo[:100]!r}: "
        yield Violation("hf_repo", f"{shown}{wanted}", "NOT_A_REPOSITORY")
    if request.HasField("hf_repo") and kind == "file":
        yield Violation("hf_repo", "it gives weights, and asset_type is 'file'", "ASSET_TYPE_MISMATCH")

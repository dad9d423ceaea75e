"""Pictures, checkpoints and LoRAs as rows: make, look up, complete, reject, delete. Called by gateway/assets and the catalogue;
knows nothing of their bytes (store/objects does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from store.database import Database
from store.tables import Asset


@dataclass(frozen=True)
class NewAsset:
    """What a caller asks for."""

    tenant_id: str
    """Whose it will be."""
    asset_type: str
    """One of tables.ASSET_TYPES."""
    name: str
    """Need not be unique."""
    description: str = ""
    """For people."""
    data: dict[str, Any] = field(default_factory=dict)
    """The fields of its AssetData arm in the JSON profile's names; engine, data_type and file_format are read for filters."""
    is_public: bool = False
    """Every tenant may use it."""
    source: dict[str, Any] | None = None
    """{"builtin": name} or {"hugging_face": repository, "commit": hash}: nothing is to be uploaded and it is ready at once.
    None: an upload."""
    hf_repo: str | None = None
    """Shown only."""
    url: str | None = None
    """Shown only."""


@dataclass(frozen=True)
class AssetFilter:
    """Which assets to list. None or empty lets everything through; several must all hold."""

    name: str | None = None
    """The exact name."""
    is_public: bool | None = None
    """True: public ones, whoever's. False: the tenant's own that are not public. None: the tenant's own."""
    data_type: str | None = None
    """data.data_type."""
    asset_types: Sequence[str] = ()
    """Any of these."""
    engines: Sequence[str] = ()
    """Any of these."""
    engine_type: str | None = None
    """What stands before the engine's slash."""
    file_formats: Sequence[str] = ()
    """Any of these in data.file_format."""
    asset_ids: Sequence[str] = ()
    """Any of these."""
    owner: str | None = None
    """Name of a tenant; of another than the caller's only public ones are listed."""
    offset: int = 0
    """How many to skip."""
    limit: int = 100
    """How many to return at most."""


async def create(db: Database, new: NewAsset) -> Asset:
    """Makes an asset: ready_to_upload, or ready where a source is given."""
    raise NotImplementedError


async def find(db: Database, tenant_id: str, id_or_name: str) -> Asset:
    """The living asset of that id, name or "owner:name": the tenant's own first, else a public one; of a name the newest.

    NotFound: none, or another tenant's that is not public.
    """
    raise NotImplementedError


async def find_many(db: Database, tenant_id: str, ids: Sequence[str]) -> dict[str, Asset]:
    """By id, those of the assets that live and that the tenant may see."""
    raise NotImplementedError


async def list_assets(db: Database, tenant_id: str, which: AssetFilter) -> tuple[list[Asset], int]:
    """A page of the assets that match, newest first, and how many match in all."""
    raise NotImplementedError


async def complete(
    db: Database,
    tenant_id: str,
    asset_id: str,
    *,
    size_bytes: int,
    sha256: str,
    object_key: str,
    data: dict[str, Any] | None = None,
    status_details: str = "",
    status_info: dict[str, Any] | None = None,
) -> Asset:
    """The upload is judged good: ready. One that is ready or rejected already comes back unchanged: the first commit wins.

    NotFound: no such asset of the tenant. StateForbids: it is in error.
    """
    raise NotImplementedError


async def reject(
    db: Database,
    tenant_id: str,
    asset_id: str,
    reason: str,
    details: str,
    *,
    size_bytes: int = 0,
    sha256: str | None = None,
) -> Asset:
    """The upload is judged bad: rejected, with `reason` for programs and `details` for people. Otherwise as complete()."""
    raise NotImplementedError


async def delete(db: Database, tenant_id: str, asset_id: str) -> Asset:
    """Hides the asset. Its row and its object stay for tunes that read it. NotFound: none of the tenant's that lives."""
    raise NotImplementedError


async def publish(
    db: Database, owner_name: str, name: str, engine: str, source: dict[str, Any], data: dict[str, Any] | None = None
) -> Asset:
    """Makes or mends a public checkpoint of the catalogue; ready. Safe to repeat, and where two gateways start at once."""
    raise NotImplementedError

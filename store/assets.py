"""Pictures, checkpoints and LoRAs as rows: make, look up, complete, reject, delete. Called by gateway/assets and the
catalogue, and by submission for the checkpoints that tunes name; knows nothing of their bytes (store/objects does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, insert, or_, select, update
from sqlalchemy import delete as erase
from sqlalchemy.ext.asyncio import AsyncConnection

from store import keys
from store.database import Database, Transaction
from store.dialect import among, now
from store.errors import NotFound, StateForbids
from store.ids import new_id
from store.tables import Asset, assets, fetches, record, tenants


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
    """The fields of its AssetData arm in the JSON profile's names; engine, data_type and file_format are read for
    filters.
    """
    is_public: bool = False
    """Every tenant may use it."""
    skip_validation: bool = False
    """Its upload is taken unjudged, unless its completion says otherwise. Pictures are always judged."""
    source: dict[str, Any] | None = None
    """{"builtin": name} or {"hugging_face": repository, "commit": hash}: nothing is to be uploaded and it is ready at
    once. None: an upload.
    """
    hf_repo: str | None = None
    """Shown only."""
    url: str | None = None
    """Shown only: without what may be a secret."""


@dataclass(frozen=True)
class AssetFilter:
    """Which assets to list. None, or of the sequences that are () by default an empty one, lets everything through;
    several must all hold.
    """

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
    asset_ids: Sequence[str] | None = None
    """Any of these; of none at all, none: who deletes what is listed has named nothing."""
    owner: str | None = None
    """Name of a tenant; of another than the caller's only public ones are listed."""
    offset: int = 0
    """How many to skip."""
    limit: int = 100
    """How many to return at most."""


async def create(db: Database, new: NewAsset) -> Asset:
    """Makes an asset: ready_to_upload, or ready where a source is given."""
    async with db.write() as transaction:
        return await insert_new(transaction, new)


async def insert_new(transaction: Transaction, new: NewAsset) -> Asset:
    """Within a transaction: what create() makes."""
    status = "ready_to_upload" if new.source is None else "ready"
    values = {
        "id": new_id("asset"),
        "tenant_id": new.tenant_id,
        "asset_type": new.asset_type,
        "name": new.name,
        "description": new.description,
        "status": status,
        "is_public": new.is_public,
        "skip_validation": new.skip_validation,
        "source": new.source,
        "hf_repo": new.hf_repo,
        "url": new.url,
        **described(new.data),
    }
    return await insert_asset(transaction, values)


async def insert_asset(transaction: Transaction, values: dict[str, Any]) -> Asset:
    """Within a transaction: a new row, and what it is by default."""
    values = {"description": "", "status_details": "", "size_bytes": 0, "is_public": False, "data": {}, **values}
    row = (await transaction.execute(insert(assets).values(**values, created_at=now()).returning(*assets.c))).one()
    return record(Asset, row)


async def find(db: Database, tenant_id: str, id_or_name: str) -> Asset:
    """The living asset of that id, name or "owner:name": the tenant's own first, else a public one; of a name the
    newest.

    NotFound: none, or another tenant's that is not public.
    """
    async with db.read() as connection:
        found = await look_up(connection, tenant_id, id_or_name)
    if found is None:
        raise NotFound(f"there is no asset {id_or_name}")
    return found


async def look_up(connection: AsyncConnection, tenant_id: str, id_or_name: str) -> Asset | None:
    """Within a read or a transaction: what find() finds; None where it finds nothing."""
    owner, colon, name = id_or_name.rpartition(":")
    if colon:  # names have none; and nobody is called by nothing
        statement = _OWNED
    elif id_or_name.startswith("asset_"):
        statement = _BY_ID_OR_NAME
    else:
        statement = _NAMED
    given = {"tenant": tenant_id, "owner": owner, "id": id_or_name, "name": name or id_or_name}
    row = (await connection.execute(statement, given)).first()
    return None if row is None else record(Asset, row)


_LIVING = select(assets).where(assets.c.deleted_at.is_(None))


def _first_of(query: Select[Any], *order: ColumnElement[Any]) -> Select[Any]:
    """Of what the tenant may see: its own first, then the newest."""
    mine = assets.c.tenant_id == bindparam("tenant")
    newest = (*order, mine.desc(), assets.c.created_at.desc(), assets.c.id.desc())
    return query.where(or_(mine, assets.c.is_public)).order_by(*newest).limit(1)


# Made once: making a statement costs as much as executing it.
_IS_NAMED = assets.c.name == bindparam("name")
_IS_IT = assets.c.id == bindparam("id")
_OWNER = select(tenants.c.id).where(tenants.c.name == bindparam("owner")).scalar_subquery()
_NAMED = _first_of(_LIVING.where(_IS_NAMED))
_OWNED = _first_of(_LIVING.where(_IS_NAMED, assets.c.tenant_id == _OWNER))
_BY_ID_OR_NAME = _first_of(_LIVING.where(or_(_IS_IT, _IS_NAMED)), assets.c.id != bindparam("id"))


async def find_many(db: Database, tenant_id: str, ids: Sequence[str]) -> dict[str, Asset]:
    """By id, those of the assets that live and that the tenant may see."""
    query = _LIVING.where(among(assets.c.id, "ids"), or_(assets.c.tenant_id == tenant_id, assets.c.is_public))
    async with db.read() as connection:
        return {row.id: record(Asset, row) for row in await connection.execute(query, {"ids": ids})}


async def status_of(db: Database, asset_id: str) -> str | None:
    """Where it stands, also where it is deleted, whosever it is; None: there is no such asset."""
    async with db.read() as connection:
        return (await connection.execute(_STATUS, {"id": asset_id})).scalar()


_STATUS = select(assets.c.status).where(_IS_IT)  # by the primary key


async def list_assets(db: Database, tenant_id: str, which: AssetFilter) -> tuple[list[Asset], int]:
    """A page of the assets that match, newest first, and how many match in all."""
    matching = _LIVING.where(*_conditions(tenant_id, which))
    lists = {
        "types": which.asset_types,
        "engines": which.engines,
        "formats": which.file_formats,
        "ids": which.asset_ids,
    }
    given = {name: values for name, values in lists.items() if values is not None}
    page = matching.order_by(assets.c.created_at.desc(), assets.c.id.desc()).offset(which.offset).limit(which.limit)
    async with db.read() as connection:
        total = (await connection.execute(select(func.count()).select_from(matching.subquery()), given)).scalar_one()
        rows = (await connection.execute(page, given)).all()
    return [record(Asset, row) for row in rows], total


def _conditions(tenant_id: str, which: AssetFilter) -> Iterator[ColumnElement[bool]]:
    mine = assets.c.tenant_id == tenant_id
    if which.owner is not None:
        yield assets.c.tenant_id == select(tenants.c.id).where(tenants.c.name == which.owner).scalar_subquery()
        yield or_(mine, assets.c.is_public)
    elif not which.is_public:
        yield mine
    if which.is_public is not None:
        yield assets.c.is_public == which.is_public
    if which.name is not None:
        yield assets.c.name == which.name
    if which.data_type is not None:
        yield assets.c.data_type == which.data_type
    if which.asset_types:
        yield among(assets.c.asset_type, "types")
    if which.engines:
        yield among(assets.c.engine, "engines")
    if which.engine_type is not None:
        yield assets.c.engine.startswith(which.engine_type + "/", autoescape=True)
    if which.file_formats:
        yield among(assets.c.file_format, "formats")
    if which.asset_ids is not None:
        yield among(assets.c.id, "ids")


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
    """The upload is judged good: ready. One that is ready or rejected already comes back unchanged: the first commit
    wins.

    NotFound: no such living asset of the tenant. StateForbids: it is in error.
    """
    values: dict[str, Any] = {"size_bytes": size_bytes, "sha256": sha256, "object_key": object_key}
    values |= {"status": "ready", "status_details": status_details, "status_info": status_info}
    values["file_structure"] = "single_file"  # what one PUT brings
    return await _judge(db, tenant_id, asset_id, values | (described(data) if data is not None else {}))


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
    """The upload is judged bad: rejected, with `reason` for programs and `details` for people. Otherwise as
    complete().
    """
    values: dict[str, Any] = {"size_bytes": size_bytes, "sha256": sha256, "status": "rejected"}
    return await _judge(
        db, tenant_id, asset_id, values | {"status_details": details, "status_info": {"reason": reason}}
    )


async def _judge(db: Database, tenant_id: str, asset_id: str, values: dict[str, Any]) -> Asset:
    async with db.write() as transaction:
        asset = await _locked(transaction, tenant_id, asset_id)
        if asset.status in ("ready", "rejected"):
            return asset
        if asset.status == "error":
            raise StateForbids(f"asset {asset_id} is in error: {asset.status_details}")
        changed = update(assets).where(assets.c.id == asset_id).values(**values).returning(*assets.c)
        return record(Asset, (await transaction.execute(changed)).one())


async def delete(db: Database, tenant_id: str, asset_id: str) -> Asset:
    """Hides the asset. Its row and object stay for tunes that read it; its fetch ends. NotFound: none of the tenant's
    that lives.
    """
    async with db.write() as transaction:
        await _locked(transaction, tenant_id, asset_id)
        await transaction.execute(erase(fetches).where(fetches.c.asset_id == asset_id))
        gone = update(assets).where(assets.c.id == asset_id).values(status="deleted", deleted_at=now())
        return record(Asset, (await transaction.execute(gone.returning(*assets.c))).one())


async def _locked(transaction: Transaction, tenant_id: str, asset_id: str) -> Asset:
    """The tenant's living asset, its row locked against a second judge."""
    query = _LIVING.where(assets.c.id == asset_id, assets.c.tenant_id == tenant_id).with_for_update(key_share=True)
    row = (await transaction.execute(query)).first()
    if row is None:
        raise NotFound(f"there is no asset {asset_id}")
    return record(Asset, row)


async def publish(
    db: Database,
    owner_name: str,
    name: str,
    engine: str,
    source: dict[str, Any],
    data: dict[str, Any] | None = None,
    sha256: str | None = None,
) -> Asset:
    """Makes or mends a public checkpoint of the catalogue; ready. Safe to repeat, and where two gateways start at
    once.
    """
    columns = described({**(data or {}), "engine": engine}) | {"sha256": sha256}
    async with db.write() as transaction:
        owner, _ = await keys.tenant_named(transaction, owner_name)  # its row's lock keeps a second gateway out
        mine = _LIVING.where(assets.c.name == name, assets.c.tenant_id == owner.id, assets.c.asset_type == "checkpoint")
        known = (await transaction.execute(mine.where(assets.c.is_public).limit(1))).first()
        if known is None:
            values: dict[str, Any] = {
                "id": new_id("asset"),
                "tenant_id": owner.id,
                "asset_type": "checkpoint",
                "name": name,
            }
            values |= {"status": "ready", "is_public": True, "source": source, "hf_repo": source.get("hugging_face")}
            return await insert_asset(transaction, values | columns)
        columns |= {"status": "ready", "source": source, "hf_repo": source.get("hugging_face")}
        mended = update(assets).where(assets.c.id == known.id).values(**columns)
        return record(Asset, (await transaction.execute(mended.returning(*assets.c))).one())


def described(data: dict[str, Any]) -> dict[str, Any]:
    """The data, and the columns that repeat what of it is filtered by."""
    return {"data": data, **{name: data.get(name) for name in ("engine", "data_type", "file_format")}}

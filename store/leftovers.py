"""Which objects nobody needs any more: results of lost leases, superseded snapshots, uploads that were never completed.
Called by gateway/sweeper with keys that have lain for a while; knows keys and rows, not bytes.

An object is left over only where no transaction to come can refer to it: its tune has ended, or its epoch is over, or
its asset has been judged. What is unknown, such as another service's, is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select

from store.database import Database
from store.dialect import among
from store.states import LIVE, TuneState
from store.tables import assets, tunes
from store.tunes import lora_asset_id


async def leftovers(db: Database, keys: Sequence[str]) -> list[str]:
    """Of the keys those whose object nobody needs."""
    tune_ids = {part for part in _parts(keys) if part.startswith("tune_")}
    asset_ids = {part for part in _parts(keys) if part.startswith("asset_")} | {lora_asset_id(id) for id in tune_ids}
    async with db.read() as connection:
        found = await connection.execute(_TUNES, {"tunes": sorted(tune_ids)})
        tunes_by_id = {row.id: row for row in found}
        found = await connection.execute(_ASSETS, {"assets": sorted(asset_ids)})
        assets_by_id = {row.id: row for row in found}
    return [key for key in keys if _is_left_over(key, tunes_by_id, assets_by_id)]


#: Both by the primary key.
_TUNES = select(tunes.c.id, tunes.c.state, tunes.c.lease_epoch, tunes.c.snapshot_key, tunes.c.earlier_snapshot).where(
    among(tunes.c.id, "tunes")
)
_ASSETS = select(assets.c.id, assets.c.status, assets.c.object_key).where(among(assets.c.id, "assets"))


def _parts(keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        yield from key.split("/")


def _is_left_over(key: str, tunes_by_id: dict[str, Any], assets_by_id: dict[str, Any]) -> bool:
    match key.split("/"):
        case ["incoming", "assets", asset_id]:
            return asset_id in assets_by_id
        case ["assets", asset_id, _] if asset_id in assets_by_id:
            asset = assets_by_id[asset_id]
            return bool(asset.object_key != key and asset.status != "ready_to_upload")
        case ["incoming", tune_id, epoch, *_] if tune_id in tunes_by_id:
            return _is_over(tunes_by_id[tune_id], epoch)
        case ["snapshots", tune_id, epoch, _] if tune_id in tunes_by_id:
            tune = tunes_by_id[tune_id]
            # A failed tune's last snapshots are kept: they may be all that is left of a night's work.
            kept = key in (tune.snapshot_key, (tune.earlier_snapshot or {}).get("object_key")) and tune.state not in (
                TuneState.SUCCEEDED,
                TuneState.CANCELLED,
            )
            return not kept and _is_over(tune, epoch)
        case ["loras", tune_id, epoch, _] if tune_id in tunes_by_id:
            lora = assets_by_id.get(lora_asset_id(tune_id))
            return (lora is None or lora.object_key != key) and _is_over(tunes_by_id[tune_id], epoch)
        case _:
            return False


def _is_over(tune: Any, epoch: str) -> bool:  # noqa: ANN401  # a row of _TUNES
    """Whether the fence lets nothing of this epoch through any more."""
    return tune.state not in LIVE or (epoch.isdecimal() and int(epoch) < tune.lease_epoch)

"""Which objects nobody needs any more: results of lost leases, superseded snapshots, uploads that were never completed.
Called by gateway/sweeper with keys that it has just listed; knows keys and rows, not bytes.

    key                                      left over where
    incoming/assets/{asset}                  the asset has been judged or deleted; or the bytes have lain for so long,
                                             and no gateway is fetching them
    assets/{asset}/unjudged-{nonce}          likewise
    assets/{asset}/{sha256}                  the asset has been judged or deleted, and names another object or none
    incoming/{tune}/{epoch}/...              the epoch is over: a newer one has begun, or the tune has ended
    loras/{tune}/{epoch}/{sha256}            the epoch is over, and it is not the tune's LoRA
    snapshots/{tune}/{epoch}/{step}-{sha256} the epoch is over, or the tune has one of that step or a later one; and it
                                             is none to go on from
    anything else                            never: it may be another service's

Nothing can change an object and a row at once. Who commits a result moves its object first and writes the row later;
who sweeps reads the row first and deletes the object later; gateways do both at the same time, and may die between any
two steps. That no object is deleted which a row names, now or later, rests on this:

1. What makes an object left over is never undone. Epochs grow; an ended tune stays ended, a judged asset judged, a
   deleted one deleted; and a row that names an object never names another one again, but for snapshots. So it does
   not matter how long after the reading the deletion comes.
2. A gateway that has moved an object and not yet committed it: the object lies where no row names it. It is kept as
   long as the commit may still succeed, for the fence lets through just that which is not over here. Where the epoch
   is over already, the commit will be STALE and name nothing. An asset's verdict is the same: as long as it is not
   judged, what lies under its hash is kept, at any age.
3. Snapshots of an epoch that goes on: its reports are recorded in their order, so that one whose step is not above
   the newest's is never recorded any more. A tune falls back to the snapshot before the newest, which is kept with it,
   only at the end of an attempt; what comes of that attempt later is STALE.
4. Tunes are read before assets. A commit between the two readings ends the tune and makes its LoRA at once: so who has
   seen the tune ended sees its LoRA. The other way round, that LoRA would be deleted.
5. Only for uploads does age decide, and there a caller may PUT anew after the reading. So the object store deletes
   only what is still as old as when it was listed (Objects.delete_if_older). A caller that completes its upload in
   that moment is told that nothing is there, or gets it judged: moved away, it is no longer there to be deleted.
6. Ages are the object store's times against the clock of the gateway's host. Where these differ, uploads are swept
   too early or too late by as much; nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import exists, select

from store.database import Database
from store.dialect import among
from store.states import LIVE, TuneState
from store.tables import assets, fetches, tunes
from store.tunes import lora_asset_id

#: Statuses of an asset that is still to be judged.
UNJUDGED = ("ready_to_upload", "uploaded")


async def leftovers(db: Database, ages: Mapping[str, float], upload_seconds: float) -> list[str]:
    """Of the keys, each with the seconds that its object has lain, those whose object nobody needs.

    `upload_seconds`: for so long an upload may wait to be completed.
    """
    tune_ids = {part for part in _parts(ages) if part.startswith("tune_")}
    asset_ids = {part for part in _parts(ages) if part.startswith("asset_")} | {lora_asset_id(id) for id in tune_ids}
    async with db.read() as connection:
        # In this order: see 4 above.
        tunes_by_id = {row.id: row for row in await connection.execute(_TUNES, {"tunes": sorted(tune_ids)})}
        assets_by_id = {row.id: row for row in await connection.execute(_ASSETS, {"assets": sorted(asset_ids)})}
    return [key for key, age in ages.items() if _is_left_over(key, age >= upload_seconds, tunes_by_id, assets_by_id)]


#: Both by the primary key.
_TUNES = select(
    tunes.c.id,
    tunes.c.state,
    tunes.c.lease_epoch,
    tunes.c.snapshot_key,
    tunes.c.snapshot_step,
    tunes.c.earlier_snapshot,
    tunes.c.deleted_at,
).where(among(tunes.c.id, "tunes"))
_ASSETS = select(
    assets.c.id,
    assets.c.status,
    assets.c.object_key,
    exists().where(fetches.c.asset_id == assets.c.id).label("is_fetched"),
).where(among(assets.c.id, "assets"))


def _parts(keys: Mapping[str, float]) -> Iterator[str]:
    for key in keys:
        yield from key.split("/")


def _is_left_over(
    key: str, is_abandoned: bool, tunes_by_id: Mapping[str, Any], assets_by_id: Mapping[str, Any]
) -> bool:
    """`is_abandoned`: an upload that has lain for so long will not be completed."""
    match key.split("/"):
        case ["incoming", "assets", asset_id] if asset_id in assets_by_id:
            asset = assets_by_id[asset_id]
            return (is_abandoned and not asset.is_fetched) or asset.status not in UNJUDGED
        case ["assets", asset_id, name] if asset_id in assets_by_id:
            asset = assets_by_id[asset_id]
            if asset.status in UNJUDGED:
                return is_abandoned and not asset.is_fetched and name.startswith("unjudged")
            return bool(asset.object_key != key)
        case ["incoming", tune_id, epoch, *_] if tune_id in tunes_by_id:
            return _is_over(tunes_by_id[tune_id], epoch)
        case ["loras", tune_id, epoch, _] if tune_id in tunes_by_id:
            lora = assets_by_id.get(lora_asset_id(tune_id))
            return (lora is None or lora.object_key != key) and _is_over(tunes_by_id[tune_id], epoch)
        case ["snapshots", tune_id, epoch, name] if tune_id in tunes_by_id:
            tune = tunes_by_id[tune_id]
            return key not in _to_go_on_from(tune) and (_is_over(tune, epoch) or _is_superseded(tune, name))
        case _:
            return False


def _to_go_on_from(tune: Any) -> set[str | None]:  # noqa: ANN401  # a row of _TUNES, as below
    """The snapshots that a tune may still need: the newest, and the one before it, should that prove damaged. A failed
    tune's are kept until it is deleted: they may be all that is left of a night's work.
    """
    is_wanted = tune.state in LIVE or (tune.state is TuneState.FAILED and tune.deleted_at is None)
    return {tune.snapshot_key, (tune.earlier_snapshot or {}).get("object_key")} if is_wanted else set()


def _is_over(tune: Any, epoch: str) -> bool:  # noqa: ANN401
    """Whether the fence lets nothing of this epoch through any more."""
    return tune.state not in LIVE or (epoch.isdecimal() and int(epoch) < tune.lease_epoch)


def _is_superseded(tune: Any, name: str) -> bool:  # noqa: ANN401
    """Whether a snapshot of that name, "{step}-{sha256}.safetensors", will never be recorded any more."""
    step, _, _ = name.partition("-")
    return tune.snapshot_step is not None and step.isdecimal() and int(step) <= tune.snapshot_step

"""Assets whose bytes a gateway is to fetch: order, claim, renew, put off, end. Called by gateway/fetches and, for the
order, by the asset servicer; knows nothing of HTTP.

A fetch is due from `due_at` on. Who claims it moves that to the end of a lease, which it renews while it is at it: so
what a gateway leaves behind when it dies is due again by itself. `tries` grows with each claim and is the fence: renew,
put off and end do nothing for who bears an older number.

A fetch that wants a token is claimed only by the gateway that was given it, which names it by `token_ref` and says
again and again that it still has it (keep), also while the fetch waits for a place. By any other it is claimed only
when that has not been said for long, for then that gateway has gone, and all that is left to do is to say so. Where
the database was away nobody could say it: as of leases (store/expiry.py), none is lost for an outage of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Delete, Float, Update, and_, bindparam, delete, exists, func, insert, or_, select, update

from store import assets as asset_store
from store.assets import NewAsset
from store.database import Database, Transaction
from store.dialect import among, later, now
from store.errors import QueueFull
from store.expiry import SILENCE, is_alive
from store.leftovers import UNJUDGED
from store.tables import Asset, Fetch, assets, fetches, liveness, record

TOKEN_LEASE = 60.0  # seconds after which a token that nobody has spoken for is lost
SPEAK = TOKEN_LEASE / 4  # between two words for it
WORDS = 2.5 * SPEAK  # for the one before an outage, the one after it, and what that takes


@dataclass(frozen=True)
class NewFetch:
    """Where the bytes are: one of the two first."""

    url: str | None = None
    """Whole."""
    hf_repo: str | None = None
    """OWNER/NAME."""
    skip_validation: bool = False
    """As in the request."""
    token_ref: str | None = None
    """Names the token."""


class Hold(Enum):
    """Whose a fetch is that somebody claimed."""

    KEPT = "kept"
    """Still his."""
    LOST = "lost"
    """Another claim's: his lease had ended."""
    GONE = "gone"
    """Nobody's: its asset was deleted, or it has ended."""


async def order(db: Database, new: NewAsset, fetch: NewFetch, *, pending_limit: int) -> Asset:
    """Makes an asset and its fetch, due at once. QueueFull: the tenant has that many already."""
    async with db.write() as transaction:
        # Not exact where two of a tenant's come at once: it bounds, and need not count.
        pending = (await transaction.execute(_PENDING, {"tenant": new.tenant_id})).scalar_one()
        if pending >= pending_limit:
            raise QueueFull(f"{pending} of your assets are still to be fetched; at most {pending_limit} may be")
        asset = await asset_store.insert_new(transaction, new)
        values = {"asset_id": asset.id, "tenant_id": new.tenant_id, "tries": 0, **asdict(fetch)}
        token_until = later(TOKEN_LEASE) if fetch.token_ref else None
        await transaction.execute(insert(fetches).values(**values, due_at=now(), token_until=token_until))
        return asset


_PENDING = select(func.count()).select_from(fetches).where(fetches.c.tenant_id == bindparam("tenant"))


async def keep(db: Database, token_refs: Sequence[str]) -> set[str]:
    """Says that the caller still has these tokens. Returns those that a fetch still wants."""
    given = {"refs": token_refs, "lease": TOKEN_LEASE}
    async with db.write() as transaction:
        return set((await transaction.execute(_KEEP, given)).scalars())


#: By the index fetches_token.
_KEEP = (
    update(fetches)
    .where(among(fetches.c.token_ref, "refs"))
    .values(token_until=later(bindparam("lease", type_=Float())))
    .returning(fetches.c.token_ref)
)


async def claim(
    db: Database,
    lease_seconds: float,
    *,
    tune_lease: float,
    limit: int,
    token_refs: Sequence[str] = (),
    busy_tenants: Sequence[str] = (),
    under_way: Sequence[str] = (),
) -> list[Fetch]:
    """Takes at most so many that are due, the longest due first.

    `tune_lease`: that of tunes, in seconds. `token_refs`: the tokens that the caller has. `busy_tenants`: theirs are
    left for now. `under_way`: assets that the caller is at, though it could not renew their leases.
    """
    given = {"limit": limit, "refs": token_refs, "busy": busy_tenants, "under_way": under_way, **_patience(tune_lease)}
    async with db.write() as transaction:
        ids = (await transaction.execute(_DUE, given)).scalars().all()
        if not ids:
            return []
        rows = await transaction.execute(_TAKE, {"ids": ids, "lease": lease_seconds})
        return [record(Fetch, row) for row in rows]


#: By the index of that name. Passes over what another gateway is claiming.
_DUE = (
    select(fetches.c.asset_id)
    .where(
        fetches.c.due_at <= now(),
        ~among(fetches.c.tenant_id, "busy"),
        ~among(fetches.c.asset_id, "under_way"),
        or_(
            fetches.c.token_ref.is_(None),
            among(fetches.c.token_ref, "refs"),
            and_(
                # Not for an outage of ours. Reads one row, once, and locks it not.
                exists().where(is_alive(), liveness.c.grace_until <= later(bindparam("grace", type_=Float()))),
                or_(
                    fetches.c.token_until <= later(bindparam("unspoken", type_=Float())),
                    # A gateway of an older version speaks for no token.
                    and_(fetches.c.token_until.is_(None), fetches.c.due_at <= later(bindparam("undue", type_=Float()))),
                ),
            ),
        ),
    )
    .order_by(fetches.c.due_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_TAKE = (
    update(fetches)
    .where(among(fetches.c.asset_id, "ids"))
    .values(tries=fetches.c.tries + 1, due_at=later(bindparam("lease", type_=Float())))
    .returning(*fetches.c)
)


def _patience(tune_lease: float) -> dict[str, float]:
    """Parameters of _DUE: what keeps a token through any outage of ours, whatever the lease of tunes is.

    A silence below SILENCE gives no grace, so tokens are given the time to outlive it; after a longer one the grace is
    one lease, and is made long enough for a word. With the usual 45 s nothing is to be added.
    """
    silence = tune_lease * SILENCE
    unspoken = max(silence + WORDS - TOKEN_LEASE, 0.0)
    grace = max(WORDS - tune_lease, 0.0)
    return {"silence": -silence, "grace": -grace, "unspoken": -unspoken, "undue": -TOKEN_LEASE - unspoken}


async def put_off(db: Database, fetch: Fetch, seconds: float) -> Hold:
    """Makes it due so many seconds from now, where it still is the caller's: a lease that is renewed, or a fetch that
    is given back.
    """
    async with db.write() as transaction:
        changed = update(fetches).where(*_held(fetch)).values(due_at=later(bindparam("in", type_=Float())))
        return await _change(transaction, fetch, changed, {"in": seconds})


async def finish(db: Database, fetch: Fetch) -> Hold:
    """The asset is judged: there is nothing more to fetch. Done where it still is the caller's, as by the next two."""
    async with db.write() as transaction:
        return await _erase(transaction, fetch)


async def fail(db: Database, fetch: Fetch, reason: str, details: str) -> Hold:
    """The bytes cannot be had: the asset is in error, with `reason` for programs and `details` for people."""
    return await _end(db, fetch, {"status": "error", "status_details": details, "status_info": {"reason": reason}})


async def adopt(db: Database, fetch: Fetch, source: dict[str, Any], data: dict[str, Any]) -> Hold:
    """The bytes stay where they are, and trainers fetch them from that source: the asset is ready."""
    ready = {"status": "ready", "source": source, "file_structure": "multiple_files"}
    return await _end(db, fetch, ready | asset_store.described(data))


async def _end(db: Database, fetch: Fetch, values: dict[str, Any]) -> Hold:
    async with db.write() as transaction:
        # The asset before its fetch, as everywhere: its deletion takes them in that order, too.
        query = select(assets.c.status).where(assets.c.id == fetch.asset_id).with_for_update(key_share=True)
        status = (await transaction.execute(query)).scalar_one()
        hold = await _erase(transaction, fetch)
        if hold is Hold.KEPT and status in UNJUDGED:
            await transaction.execute(update(assets).where(assets.c.id == fetch.asset_id).values(**values))
        return hold


async def _erase(transaction: Transaction, fetch: Fetch) -> Hold:
    return await _change(transaction, fetch, delete(fetches).where(*_held(fetch)), {})


async def _change(transaction: Transaction, fetch: Fetch, change: Update | Delete, given: dict[str, Any]) -> Hold:
    """Makes a change of what is _held, and tells whose the fetch is."""
    if (await transaction.execute(change, given)).rowcount:
        return Hold.KEPT
    known = await transaction.execute(select(fetches.c.tries).where(fetches.c.asset_id == fetch.asset_id))
    return Hold.GONE if known.first() is None else Hold.LOST


def _held(fetch: Fetch) -> tuple[Any, ...]:
    return fetches.c.asset_id == fetch.asset_id, fetches.c.tries == fetch.tries

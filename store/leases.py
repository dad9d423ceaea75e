"""Who trains which tune: claim, accept, renew, restate, withdraw, reap. Called by gateway/dispatch and
gateway/session; knows no stream. What an attempt reports is in reports.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import Float, String, and_, bindparam, case, cast, or_, select, true, update

from store.attempts import Claim, Held, HeldAction, LeaseRef, Offer, Renewal, Snapshot
from store.claims import take
from store.database import Database, Transaction
from store.dialect import among, later, now
from store.errors import StateForbids
from store.events import status_changed
from store.expiry import SILENCE, has_ended
from store.moves import LOCK_ORDER, POISON_LIMIT, end_attempt, end_lost, lock, move
from store.states import LEASED, TuneState
from store.tables import Tune, liveness, record, trainers, tunes

__all__ = [
    "Claim",
    "Held",
    "HeldAction",
    "LeaseRef",
    "Offer",
    "Renewal",
    "Snapshot",
    "accept",
    "cancelled",
    "claim",
    "held",
    "holds",
    "is_current",
    "reap",
    "renew",
    "restate",
    "withdraw",
]


async def claim(db: Database, offer: Offer, lease_seconds: float) -> Claim | None:
    """Gives the trainer a tune: one whose lease has ended, else the neediest tenant's first. None: nothing fits.

    Ends on its way what it finds cancelled, poisoned or without pictures.
    """
    while True:
        async with db.write("claim") as transaction:
            found = await take(transaction, offer, lease_seconds)
        if not isinstance(found, Tune):  # a tune: it has been ended instead, so look again
            return found


async def accept(db: Database, lease: LeaseRef) -> bool:
    """The trainer has taken it: RUNNING. False: the lease is no longer its. Safe to repeat."""
    async with db.beat("accept") as transaction:
        tune = await held(transaction, lease)
        if tune is not None and tune.state is TuneState.ASSIGNED:
            attempt = tune.attempts + 1
            entry = status_changed(TuneState.RUNNING, "STARTED", "", attempt)
            await move(transaction, tune, TuneState.RUNNING, [entry], attempts=attempt)
    return tune is not None


async def withdraw(db: Database, lease: LeaseRef, reason: str, details: str = "") -> bool:
    """The assignment was rejected, or not accepted in time: back to the queue; costs no attempt. False: stale, or it
    was accepted after all.
    """
    async with db.beat("withdraw") as transaction:
        tune = await held(transaction, lease)
        if tune is None or tune.state is not TuneState.ASSIGNED:
            return False
        await end_attempt(transaction, tune, reason, details, counts=False)
    return True


async def held(transaction: Transaction, lease: LeaseRef) -> Tune | None:
    """The fence: the tune, locked, if this attempt may still write; else None."""
    tune = await lock(transaction, lease.tune_id)
    return tune if tune is not None and holds(lease, tune) and tune.state in LEASED else None


def holds(lease: LeaseRef, tune: Tune) -> bool:
    """Whether the tune's newest lease is this one. Whether its time is up does not matter: nobody has claimed it
    since.
    """
    return (tune.lease_epoch, tune.lease_trainer_id) == (lease.epoch, lease.trainer_id)


async def is_current(db: Database, lease: LeaseRef) -> Tune | None:
    """The tune if the lease is still the trainer's; None where it is stale. Writes nothing."""
    async with db.read() as connection:
        row = (await connection.execute(_CURRENT, {"tune": lease.tune_id})).first()
    tune = None if row is None else record(Tune, row)
    return tune if tune is not None and holds(lease, tune) and tune.state in LEASED else None


_CURRENT = select(tunes).where(tunes.c.id == bindparam("tune"))  # by the primary key


async def renew(db: Database, trainer_id: str, held: Sequence[LeaseRef], lease_seconds: float) -> Renewal:
    """A beat: extends by a whole lease what is still the trainer's, also where its time has run out and nobody claimed
    it.
    """
    wanted = {"trainer": trainer_id, "seconds": lease_seconds, "refs": [f"{ref.tune_id}:{ref.epoch}" for ref in held]}
    rows: dict[tuple[str, int], bool] = {}
    if held:
        async with db.beat("renew") as transaction:
            result = await transaction.execute(_RENEW, wanted)
            rows = {(row.id, row.lease_epoch): row.cancel_requested_at is not None for row in result}
    extended = [ref for ref in held if (ref.tune_id, ref.epoch) in rows and ref.trainer_id == trainer_id]
    return Renewal(
        extended=extended,
        lost=[ref for ref in held if ref not in extended],
        cancelled=[ref for ref in extended if rows[ref.tune_id, ref.epoch]],
    )


#: By the partial index tunes_held: what one trainer holds, few rows. Locked first, for an UPDATE by itself would lock
#: them in the order in which it happens on them.
_MINE = (
    select(tunes.c.id)
    .where(
        tunes.c.lease_trainer_id == bindparam("trainer"),
        tunes.c.lease_expires_at.is_not(None),
        among(tunes.c.id + ":" + cast(tunes.c.lease_epoch, String), "refs"),
    )
    .order_by(*LOCK_ORDER)
    .with_for_update(key_share=True)
)
_RENEW = (
    update(tunes)
    .where(tunes.c.id.in_(_MINE))
    .values(lease_expires_at=later(bindparam("seconds", type_=Float())))
    .returning(tunes.c.id, tunes.c.lease_epoch, tunes.c.cancel_requested_at)
)


async def cancelled(db: Database, trainer_ids: Sequence[str]) -> list[str]:
    """Tunes that these trainers hold and that are to be cancelled: what a lost wake-up would have told."""
    async with db.read() as connection:
        rows = await connection.execute(_CANCELLED, {"trainers": list(trainer_ids)})
        return [row.id for row in rows]


_CANCELLED = select(tunes.c.id).where(  # by the partial index tunes_held
    among(tunes.c.lease_trainer_id, "trainers"),
    tunes.c.lease_expires_at.is_not(None),
    tunes.c.cancel_requested_at.is_not(None),
)


async def restate(
    db: Database,
    trainer_id: str,
    held: Sequence[Held],
    lease_seconds: float,
    uptime_seconds: float = math.inf,
    session_id: str | None = None,
) -> dict[LeaseRef, HeldAction]:
    """A Hello: says for each restated attempt what to do with it, extends those that go on, and ends every other lease
    of the trainer at once.

    `uptime_seconds`: how long the gateway that asks has run. A lease older than that fell with the gateway, by a power
    cut perhaps: no sign that its tune kills trainers. `session_id`: the stream that asks; None: there is none.

    Raises:
        StateForbids: The trainer has said a newer Hello, and may have been given since what this one cannot name.
    """
    stated = {(each.lease.tune_id, each.lease.epoch): each for each in held if each.lease.trainer_id == trainer_id}
    actions = dict.fromkeys((each.lease for each in held), HeldAction.ABORT)
    async with db.beat("restate") as transaction:
        if session_id is not None:
            newest = (await transaction.execute(_NEWEST, {"trainer": trainer_id})).scalar()
            if newest != session_id:
                raise StateForbids("A newer stream of this trainer has taken over.")
        rows = (await transaction.execute(_HELD, {"trainer": trainer_id})).all()
        for tune, age in [(record(Tune, row), row.now - row.lease_claimed_at) for row in rows]:
            known = stated.get((tune.id, tune.lease_epoch))
            if known is None:
                await end_lost(transaction, tune, blamed=age.total_seconds() < uptime_seconds)
                continue
            await transaction.execute(_EXTEND, {"tune": tune.id, "seconds": lease_seconds})
            actions[known.lease] = HeldAction.SEND_RESULT if known.result_pending else HeldAction.CONTINUE
    return actions


#: Locked before any tune, until the tunes are written: a newer Hello, and with it the next claim, comes behind that.
_NEWEST = (
    select(trainers.c.session_id).where(trainers.c.trainer_id == bindparam("trainer")).with_for_update(key_share=True)
)
#: By the partial index tunes_held.
_HELD = (
    select(tunes, now().label("now"))
    .where(tunes.c.lease_trainer_id == bindparam("trainer"), tunes.c.lease_expires_at.is_not(None))
    .order_by(*LOCK_ORDER)
    .with_for_update(key_share=True)
)
_EXTEND = (
    update(tunes)
    .where(tunes.c.id == bindparam("tune"))
    .values(lease_expires_at=later(bindparam("seconds", type_=Float())))
)


async def reap(db: Database, lease_seconds: float) -> int:
    """Ends expired tunes that are cancelled or poisoned, and shows that the service is alive. Returns how many ended.

    To be called by every gateway, once a heartbeat: where nobody has for half a lease, we were away, and one whole
    lease passes before any lease counts as ended.
    """
    ended = 0
    async with db.beat("reap") as transaction:
        await transaction.execute(_ALIVE, {"silence": -lease_seconds * SILENCE, "lease": lease_seconds})
        rows = await transaction.execute(_DOOMED, {"silence": -lease_seconds * SILENCE})
        for tune in [record(Tune, row) for row in rows]:
            await end_lost(transaction, tune)
            ended += 1
    return ended


_ALIVE = update(liveness).values(
    seen_at=now(),
    grace_until=case(
        (liveness.c.seen_at < later(bindparam("silence", type_=Float())), later(bindparam("lease", type_=Float()))),
        else_=liveness.c.grace_until,
    ),
)


#: By the partial index tunes_leases, which holds what is leased now. What somebody else has locked is not lost, or is
#: being ended already.
_DOOMED = (
    select(tunes)
    .join(liveness, true())
    .where(
        *has_ended(),
        or_(
            tunes.c.cancel_requested_at.is_not(None),
            and_(tunes.c.state == TuneState.RUNNING, tunes.c.crashes >= POISON_LIMIT - 1),
        ),
    )
    .order_by(*LOCK_ORDER)
    .limit(100)
    .with_for_update(key_share=True, skip_locked=True, of=tunes)
)

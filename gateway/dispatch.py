"""Pairs queued tunes with idle slots of the trainers connected here. Called by the server; knows no HTTP, no torch.

store ── "queue" ───> run ── claim ── Assign ──> session      who gets what is the store's; every 2 s without a wake-up
      ── "cancel" ──> run ────────── Cancel ──> session      likewise
      ── "trainer" ─> run ── evicted, drain? ─> session      likewise
clock ──────────────> run ── reap                             ends what is expired and cancelled or poisoned
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from gateway.breaches import evicted, going_away
from gateway.desk import Desk, StreamSettings
from gateway.results import Results
from gateway.session import Session
from gateway.stream_metrics import StreamMetrics
from store import leases, reports, trainers
from store.database import Database
from store.errors import DatabaseAway, StateForbids
from store.leases import Claim, Offer
from store.objects import Objects
from store.tables import Trainer
from store.wakeups import Topic
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger(__name__)

AWAY = 1.0  # seconds until a database that is away is asked again


class Dispatcher:
    """The sessions of this gateway and who feeds them. Belongs to the event loop."""

    def __init__(self, database: Database, objects: Objects, settings: StreamSettings, metrics: StreamMetrics) -> None:
        self.desk = Desk(
            database=database,
            objects=objects,
            results=Results(database, objects, settings.max_attempts),
            settings=settings,
            metrics=metrics,
            slot_freed=lambda: self._work.set(),
            spawn=self._spawn,
        )
        self._database = database
        self._sessions: dict[str, Session] = {}  # by trainer id; written by admit and dismiss
        self._work = asyncio.Event()  # set when a slot or a tune may have come free
        self._gone: asyncio.Queue[Session] = asyncio.Queue()  # streams whose end is not in the database yet
        self._timers: set[asyncio.Task[None]] = set()  # of assignments; they outlive their stream
        self._closing = False

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            await self._run()
        finally:
            for timer in self._timers:
                timer.cancel()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._dispatch())
            tasks.create_task(self._follow("queue", self._queued))
            tasks.create_task(self._follow("cancel", self._cancelled))
            tasks.create_task(self._follow("trainer", self._look_at))
            tasks.create_task(self._poll())
            tasks.create_task(self._reap())
            tasks.create_task(self._say_goodbyes())

    async def admit(self, trainer_id: str, hello: pb.Hello) -> Session:
        """Takes up a trainer that has said Hello, in place of an older stream of its own.

        Raises:
            Refusal: This gateway goes away, or the trainer has said a newer Hello elsewhere.
        """
        if self._closing:
            raise going_away()
        session = Session(trainer_id, hello, self.desk)
        row = trainers.Hello(
            trainer_id=trainer_id,
            boot_id=hello.boot_id,
            session_id=hello.session_id,
            gateway_id=self.desk.settings.gateway_id,
            engines=list(hello.engines),
            slots=hello.slots,
            device_name=hello.device_name,
            device_memory_bytes=hello.device_memory_bytes,
            version=hello.version,
        )
        try:
            before = await self._take_up(session, row)
        except BaseException:
            self._gone.put_nowait(session)  # its row may say already that it is connected
            raise
        self._sessions[trainer_id] = session
        self._count()
        self._work.set()
        log.info(
            "A trainer is connected",
            action="trainer_connected",
            boot_id=hello.boot_id,
            device=hello.device_name,
            engines=list(hello.engines),
            held=len(hello.held),
            evicted_session=before.session_id if before is not None else None,
        )
        return session

    async def _take_up(self, session: Session, row: trainers.Hello) -> Trainer | None:
        """Up to its Welcome. Returns whom it evicts, as connect() does."""
        try:
            before = await trainers.connect(self._database, row)
        except StateForbids as exc:
            raise evicted(same_process=True) from exc
        self._cut_older(session)
        await session.welcome()
        if self._closing:
            raise going_away()
        self._cut_older(session)
        return before

    def _cut_older(self, session: Session) -> None:
        """Also a newer one may stand here, for the database was asked meanwhile. Processes have no order, and of two
        whoever is admitted last stays.
        """
        if (other := self._sessions.get(session.trainer_id)) is None:
            return
        same_process = other.boot_id == session.boot_id
        if same_process and session.session_id < other.session_id:
            raise evicted(same_process=True)
        del self._sessions[session.trainer_id]
        other.cut(evicted(same_process=same_process))

    def dismiss(self, session: Session) -> None:
        """Its stream has ended. Its leases are left as they are: the trainer may come back, here or elsewhere."""
        if self._sessions.get(session.trainer_id) is session:
            del self._sessions[session.trainer_id]
        self._gone.put_nowait(session)
        self._count()
        log.info("A trainer's stream has ended", action="trainer_gone")

    async def shutdown(self, grace_seconds: float) -> None:
        """Sends every trainer to another gateway; waits until their streams have ended, or the grace time has."""
        self._closing = True
        sessions = list(self._sessions.values())
        ending = [asyncio.create_task(_redirect(session)) for session in sessions]
        if ending:
            await asyncio.wait(ending, timeout=grace_seconds)
        for task in ending:
            task.cancel()
        for session in sessions:
            session.cut(going_away())
        with contextlib.suppress(TimeoutError, DatabaseAway):
            async with asyncio.timeout(grace_seconds):
                await self._gone.join()

    # Dispatch

    async def _dispatch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.desk.settings.poll_seconds):
                    await self._work.wait()
            self._work.clear()
            await self._guard(self._fill_slots)

    async def _fill_slots(self) -> None:
        """One tune to each idle trainer in turn, until none finds anything."""
        barren: list[Offer] = []  # offers for which nothing was found in this round
        progress = True
        while progress and not self._closing:
            progress = False
            for session in list(self._sessions.values()):
                if session.free_slots() > 0 and await self._feed(session, barren):
                    progress = True

    async def _feed(self, session: Session, barren: list[Offer]) -> bool:
        offer = session.offer()
        if any(_covers(other, offer) for other in barren):
            return False
        started = time.perf_counter()
        claim = await leases.claim(self._database, offer, self.desk.settings.lease_seconds)
        self.desk.metrics.claim.observe(time.perf_counter() - started)
        if claim is None:
            barren.append(offer)
            return False
        await self._assign(session, claim)
        return True

    async def _assign(self, session: Session, claim: Claim) -> None:
        tune = claim.tune
        log.info("A tune is assigned", action="assign", tune_id=tune.id, epoch=claim.lease.epoch, to=session.trainer_id)
        if claim.lease.epoch == 1 and tune.lease_claimed_at is not None:
            self.desk.metrics.wait.observe((tune.lease_claimed_at - tune.created_at).total_seconds())
        try:
            await session.assign(claim)
        except DatabaseAway:
            raise
        except Exception:
            # One tune that cannot be told must not keep all others from their trainers.
            log.exception("A tune could not be assigned", action="assign_failed", tune_id=tune.id)
            await reports.fail(
                self._database,
                claim.lease,
                1,
                "ASSIGN_FAULT",
                "The assignment could not be made.",
                retryable=True,
                crashed=False,
            )

    # Wake-ups

    async def _follow(self, topic: Topic, act: Callable[[str], Awaitable[None]]) -> None:
        async with self._database.wakeups.subscribe(topic) as ids:
            async for id in ids:
                await self._guard(partial(act, id))  # where it fails, the next beat or the next poll finds it

    async def _queued(self, engine: str) -> None:
        self._work.set()

    async def _cancelled(self, tune_id: str) -> None:
        for session in list(self._sessions.values()):
            await session.cancel(tune_id)

    async def _poll(self) -> None:
        """Beneath the wake-ups: the next beat would tell cancels too, but may be further off."""
        while True:
            await asyncio.sleep(self.desk.settings.poll_seconds)
            if self._sessions:
                await self._guard(self._tell_cancels)
                await self._guard(self._look_at_all)

    async def _tell_cancels(self) -> None:
        for tune_id in await leases.cancelled(self._database, list(self._sessions)):
            await self._cancelled(tune_id)

    async def _look_at(self, *trainer_ids: str) -> None:
        """Their rows may have changed."""
        # Which sessions is settled before the rows are read: one that is admitted meanwhile is newer than its row here.
        here = {id: session for id in trainer_ids if (session := self._sessions.get(id)) is not None}
        if here:
            for row in await trainers.find(self._database, list(here)):
                await here[row.trainer_id].heed(row)
            self._count()

    async def _look_at_all(self) -> None:
        await self._look_at(*self._sessions)

    # Housekeeping

    async def _reap(self) -> None:
        settings = self.desk.settings
        while True:
            await self._guard(self._reap_once)
            await asyncio.sleep(min(settings.heartbeat_seconds, settings.reap_seconds))

    async def _reap_once(self) -> None:
        if ended := await leases.reap(self._database, self.desk.settings.lease_seconds):
            log.info(f"{ended} tunes without a trainer were ended", action="reap", ended=ended)

    async def _say_goodbyes(self) -> None:
        while True:
            session = await self._gone.get()
            with contextlib.suppress(DatabaseAway):  # then its last beat grows old
                await trainers.disconnect(self._database, session.trainer_id, session.session_id)
            self._gone.task_done()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does it; where that fails, says so. The caller's next round tries again, and the gateway goes on serving."""
        try:
            await work()
        except DatabaseAway as exc:
            log.warning(f"The database is away: {exc}", action="database_away")
            await asyncio.sleep(AWAY)
        except Exception:
            log.exception("A round of dispatch failed for a fault of ours", action="dispatch_failed")
            await asyncio.sleep(AWAY)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        timer = asyncio.create_task(work)
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)

    def _count(self) -> None:
        self.desk.metrics.trainers.set(len(self._sessions))
        self.desk.metrics.drained.set(sum(session.is_drained for session in self._sessions.values()))


async def _redirect(session: Session) -> None:
    await session.redirect("this gateway goes away")
    await session.closed.wait()


def _covers(other: Offer, offer: Offer) -> bool:
    """Whether what the other could not find, this one cannot find either."""
    return set(offer.engines) <= set(other.engines) and offer.memory_bytes <= other.memory_bytes

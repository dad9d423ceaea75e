"""What this trainer holds, and the hands of the protocol: performs what protocol.py decides. Called by session and
supervisor; knows no message's meaning.

    Session ── Workbench ── TrainerEnd         what is to be done and said
                   ├─────── Attempt ── Engine (child process)
                   │           └────── Downloads
                   ├─────── Spool              what is still to be reported
                   └─────── Urls, uploads      objects
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from trainer.supervisor.attempt import Attempt, Tools
from trainer.supervisor.child import Engine
from trainer.supervisor.config import Settings
from trainer.supervisor.downloads import Downloads
from trainer.supervisor.effects import (
    Begin,
    Close,
    Delete,
    Effect,
    End,
    Ending,
    Forget,
    Greeted,
    Hand,
    Heed,
    Ignore,
    Leave,
    Stored,
    Upload,
)
from trainer.supervisor.leases import Lease, LeaseLost, Leases
from trainer.supervisor.metrics import Metrics
from trainer.supervisor.protocol import Ability, TrainerEnd
from trainer.supervisor.session import Session
from trainer.supervisor.spool import Report, Spool
from trainer.supervisor.uploads import upload
from trainer.supervisor.urls import UrlRefused, Urls
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger()

PARTING = 0.5  # share of the grace time that a last snapshot may take to upload


@dataclass
class _Held:
    """An attempt of this process and its task."""

    attempt: Attempt
    task: asyncio.Task[None]


class Workbench:
    """All attempts of this process. Belongs to the event loop."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient, engine: Engine, metrics: Metrics) -> None:
        self.welcomed_once = asyncio.Event()
        self.spool = Spool(settings.data / "spool")
        version, gateways = importlib.metadata.version("tunesmith"), len(settings.gateways)
        self._end = TrainerEnd(settings.trainer_id, str(uuid.uuid4()), version, self, gateways)
        self._client = client
        self._engine = engine
        self._metrics = metrics
        self._downloads = Downloads(client, settings.data / "cache", settings.cache_bytes)
        self._urls = Urls(self._ask)
        self._tools = Tools(
            downloads=self._downloads,
            engine=engine,
            spool=self.spool,
            work=(settings.data / "work").absolute(),
            bases=settings.bases,
            fresh_url=lambda lease, name: self._urls.ask(lease, pb.METHOD_GET, name),
            upload=self._put,
            parting=settings.grace * PARTING,
            metrics=metrics,
            told=self._told,
        )
        self._attempts: dict[Lease, _Held] = {}  # until their task has ended, also when the lease is lost
        self._uploads: dict[tuple[Lease, int], asyncio.Task[None]] = {}
        self._streams = itertools.count(1)
        self._session: Session | None = None  # None while there is no stream
        self._left = asyncio.Event()  # set when all is given back

    @property
    def leases(self) -> Leases:
        """What is held."""
        return self._end.leases

    def startup(self) -> None:
        """Takes up the results that an earlier process left. Blocks; called before anything else."""
        self._downloads.startup()
        for report in self.spool.recover():
            log.info("A result of an earlier process waits to be reported", lease=str(report.lease), report=report.arm)
            self._start_uploads(self._end.recover(report))

    async def drain(self) -> bool:
        """Takes no more, gives back every tune, waits until the gateway has recorded that; then ends the stream.

        Returns whether there is one that has still to end.
        """
        await self._perform(self._end.drain())
        self._stir()
        await self._left.wait()
        return self._session is not None

    async def shutdown(self) -> None:
        """Ends what still runs, and waits for it."""
        tasks = [held.task for held in self._attempts.values()] + list(self._uploads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def beat_soon(self) -> None:
        """The gateway should hear at once how many slots are free."""
        self._end.beat_soon()
        self._stir()

    # What a session needs

    def opened(self, session: Session) -> None:
        """There is a stream."""
        self._session = session
        self._end.opened(f"{next(self._streams):08d}-{uuid.uuid4()}", time.monotonic())

    def lost(self) -> bool:
        """The stream is no more. Returns whether it had come to its Welcome."""
        welcomed = self._end.is_welcomed
        self._session = None
        self._end.lost()
        self._metrics.connected.set(0)
        return welcomed

    def next_message(self) -> pb.TrainerMessage | None:
        """What to send now."""
        return self._end.next_message(time.monotonic())

    def quiet_for(self) -> float | None:
        """Seconds until something is to be sent though nothing happens; None: for ever."""
        now = time.monotonic()
        wakes_at = self._end.wakes_at(now)
        return None if wakes_at is None else wakes_at - now

    def patient_for(self) -> float:
        """Seconds until silence ends the stream."""
        now = time.monotonic()
        return self._end.gives_up_at(now) - now

    async def look(self) -> None:
        """Time has passed."""
        await self._perform(self._end.look(time.monotonic()))

    async def received(self, message: pb.GatewayMessage) -> None:
        """Acts on a message of the gateway."""
        await self._perform(self._end.received(message, time.monotonic()))
        self._stir()

    # What the protocol reads

    def ability(self) -> Ability:
        """What the engine can do."""
        known = self._engine.known
        assert known is not None
        return Ability(
            engines=known.engines,
            slots=known.slots,
            ready=self._engine.ready is not None,
            warm=self._engine.resident,
            device_name=known.device_name,
            device_memory_bytes=known.device_memory_bytes,
        )

    def waiting(self, lease: Lease) -> Sequence[Report]:
        """What the spool holds of it."""
        return self.spool.waiting(lease)

    def progress(self, lease: Lease) -> pb.Progress | None:
        """What its attempt has done since the last one."""
        held = self._attempts.get(lease)
        return None if held is None else held.attempt.progress.take()

    # What the protocol decides

    async def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Greeted(verdicts):
                    self._greeted(verdicts)
                case Begin(assign):
                    self._begin(assign)
                case End(lease, ending, why):
                    self._stop(lease, ending, why)
                case Delete(lease, report_seq):
                    await self.spool.acknowledged(lease, report_seq)
                case Forget(lease, outcome):
                    await self._forget(lease, outcome)
                case Stored(lease, step):
                    if (held := self._attempts.get(lease)) is not None:
                        held.attempt.progress.stored(step)
                case Hand(urls):
                    self._urls.answered(urls)
                case Heed(drained, why):
                    log.warning("This trainer is drained" if drained else "This trainer works again", why=why)
                case Ignore(arm):
                    log.warning("A message of the gateway is not known here and is ignored", arm=arm)
                case Close(why, redirected):
                    if self._session is not None:
                        self._session.close(why, redirected=redirected)
                case Leave():
                    self._left.set()
                    if self._session is not None:
                        self._session.leave()

    def _greeted(self, verdicts: Mapping[Lease, pb.HeldAction.ValueType]) -> None:
        held = {str(lease): pb.HeldAction.Name(action) for lease, action in verdicts.items()}
        log.info("A gateway has welcomed this trainer", held=held)
        for each in self._attempts.values():
            each.attempt.progress.tell_again()
        self._metrics.connected.set(1)
        self._urls.ask_again()
        self.welcomed_once.set()

    def _begin(self, assign: pb.Assign) -> None:
        attempt = Attempt(assign, self._tools)
        # By the trace's own name its caller finds what was done here.
        trace = {"trace_id": assign.traceparent.split("-")[1]} if assign.traceparent else {}
        log.info("A tune is taken", lease=str(attempt.lease), engine=assign.engine, steps=assign.request.steps, **trace)
        self._attempts[attempt.lease] = _Held(attempt, asyncio.create_task(self._live(attempt)))
        self._count()

    async def _live(self, attempt: Attempt) -> None:
        lease = attempt.lease
        try:
            oldest = min(held.attempt.started for held in self._attempts.values())
            await self._tools.downloads.prune(keep_since=oldest)
            await attempt.run()
        except Exception:
            # A fault of ours in one tune is that tune's failure, not the trainer's.
            log.exception("The supervisor failed in an attempt", lease=str(lease))
            failed = pb.Failed(
                lease=lease.message(), reason="SUPERVISOR_FAULT", details="see the trainer's log", retryable=True
            )
            await self.spool.append(lease, pb.TrainerMessage(failed=failed))
        finally:
            self.leases.note_step(lease, attempt.progress.step)
        if lease in self.leases:
            self._told()
        else:
            await self.spool.drop(lease)  # what it still said when the lease was lost already
            self._attempts.pop(lease, None)

    def _stop(self, lease: Lease, ending: Ending, why: str) -> None:
        log.warning("A tune is stopped", lease=str(lease), ending=ending.value, why=why)
        if (held := self._attempts.get(lease)) is not None:
            held.attempt.end(ending)

    async def _forget(self, lease: Lease, outcome: str) -> None:
        log.info("A tune has ended here", lease=str(lease), report=outcome)
        if (held := self._attempts.get(lease)) is not None and held.task.done():
            del self._attempts[lease]
        self._urls.lost(lease)
        for key in [key for key in self._uploads if key[0] == lease]:
            self._uploads.pop(key).cancel()
        self._metrics.ended(outcome)
        self._count()
        await self.spool.drop(lease)

    # Objects

    def _told(self) -> None:
        """An attempt has something to say."""
        self._start_uploads(self._end.spooled())
        self._stir()

    def _start_uploads(self, due: Iterable[Upload]) -> None:
        for report in (each.report for each in due):
            self._uploads[report.lease, report.seq] = asyncio.create_task(self._upload(report))

    async def _upload(self, report: Report) -> None:
        assert report.file is not None
        name = report.object.name
        try:
            await self._put(report.lease, name, report.file)
        except LeaseLost:
            return
        except UrlRefused as exc:
            log.error("An upload is refused", lease=str(report.lease), why=str(exc))  # its report will be told so too
        except (OSError, httpx.InvalidURL) as exc:
            # The file is gone or cannot be read, or the URL is none.
            log.error("A file of the spool cannot be sent", lease=str(report.lease), name=name, why=str(exc))
        self._end.uploaded(report)
        self._stir()

    async def _put(self, lease: Lease, name: str, path: Path) -> float:
        return await upload(self._client, path, lambda: self._urls.ask(lease, pb.METHOD_PUT, name))

    # Small things

    def _ask(self, request: pb.UrlRequest) -> None:
        self._end.ask(request)
        self._stir()

    def _stir(self) -> None:
        """There may be something to send."""
        if self._session is not None:
            self._session.stir()

    def _count(self) -> None:
        self._metrics.held.set(len(self.leases))

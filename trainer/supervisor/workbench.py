"""What this trainer holds, and what each message of the gateway means for it. Called by session and supervisor.

The stream's rhythm is session.py's, an attempt's life attempt.py's, the rules about leases leases.py's: here they meet.

    Session ── Workbench ── Attempt ── Engine (child process)
                   │           └────── Downloads
                   ├── Leases, Spool     what is held, what is still to be reported
                   └── Urls, uploads     objects
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from trainer.supervisor.attempt import Attempt, Ending, Tools
from trainer.supervisor.child import Engine
from trainer.supervisor.config import Settings
from trainer.supervisor.downloads import Downloads
from trainer.supervisor.leases import Lease, LeaseLost, Leases
from trainer.supervisor.metrics import Metrics
from trainer.supervisor.session import Session
from trainer.supervisor.spool import Report, Spool
from trainer.supervisor.uploads import upload
from trainer.supervisor.urls import UrlRefused, Urls
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger()

PARTING = 0.5  # share of the grace time that a last snapshot may take to upload
WINDOW = 64  # reports of one attempt that may wait for their acknowledgement


@dataclass
class _Held:
    """An attempt of this process and its task."""

    attempt: Attempt
    task: asyncio.Task[None]


class Workbench:
    """All attempts of this process. Belongs to the event loop."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient, engine: Engine, metrics: Metrics) -> None:
        self.reports_waiting = asyncio.Event()
        self.progress_waiting = asyncio.Event()
        self.beat_due = asyncio.Event()
        self.welcomed_once = asyncio.Event()
        self.leases = Leases()
        self.spool = Spool(settings.data / "spool")
        self._trainer_id = settings.trainer_id
        self._boot_id = str(uuid.uuid4())
        self._client = client
        self._engine = engine
        self._metrics = metrics
        self._downloads = Downloads(client, settings.data / "cache", settings.cache_bytes)
        self._urls = Urls(self._send_soon)
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
        self._session: Session | None = None  # the stream that is welcomed; None while there is none
        self._draining = False
        self._emptied = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    def startup(self) -> None:
        """Takes up the results that an earlier process left. Blocks; called before anything else."""
        self._downloads.startup()
        for report in self.spool.recover():
            log.info("A result of an earlier process waits to be reported", lease=str(report.lease), report=report.arm)
            step = getattr(report.message, report.arm).step if report.arm != "failed" else 0
            self.leases.recover(report.lease, step)

    async def drain(self) -> bool:
        """Takes no more, gives back every tune, waits until the gateway has recorded that; then closes the stream.

        Returns whether there is one that has still to end.
        """
        self._draining = True
        self._say_draining()
        for held in self._attempts.values():
            held.attempt.end(Ending.RETURNED)
        while len(self.leases) > 0:
            self._emptied.clear()
            await self._emptied.wait()
        if self._session is not None:
            self._session.close()
        return self._session is not None

    async def shutdown(self) -> None:
        """Ends what still runs, and waits for it."""
        tasks = [held.task for held in self._attempts.values()] + list(self._uploads.values()) + list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def part(self) -> None:
        """There is no stream now."""
        self._session = None
        self._metrics.connected.set(0)

    # What a session needs

    def hello(self, session_id: str) -> pb.Hello:
        """All that is held and all that can be done."""
        known = self._engine.known
        assert known is not None
        return pb.Hello(
            trainer_id=self._trainer_id,
            boot_id=self._boot_id,
            session_id=session_id,
            version=importlib.metadata.version("tunesmith"),
            engines=known.engines,
            slots=known.slots,
            device_name=known.device_name,
            device_memory_bytes=known.device_memory_bytes,
            warm_checkpoints=self._engine.resident,
            held=self.leases.restated(),
        )

    async def welcomed(self, welcome: pb.Welcome, hello_sent: float, session: Session) -> None:
        """Does with each held attempt as it is told, and publishes again."""
        verdicts = self.leases.welcomed(welcome, hello_sent)
        self._session = session
        self._metrics.connected.set(1)
        log.info(
            "A gateway has welcomed this trainer",
            held={str(lease): pb.HeldAction.Name(action) for lease, action in verdicts.items()},
        )
        for lease, action in verdicts.items():
            if action == pb.HELD_ACTION_ABORT:
                await self._abandon(lease, "the gateway said ABORT")
        self._urls.ask_again()
        self._told()
        if self._draining:
            self._say_draining()
        self.welcomed_once.set()

    def heartbeat(self) -> pb.Heartbeat:
        """What is held, and how much more could be."""
        return pb.Heartbeat(
            seq=self.leases.beat(time.monotonic()),
            free_slots=self._free_slots(),
            warm_checkpoints=self._engine.resident,
            held=self.leases.restated(),
        )

    def silence(self) -> float:
        """Seconds since the oldest beat without an answer."""
        return self.leases.silence(time.monotonic())

    def reports(self) -> Iterator[Report]:
        """Every report whose lease is trusted and whose object is uploaded: in order, a window of each lease."""
        for lease in self.leases.all():
            for report in self.spool.waiting(lease)[:WINDOW]:
                if not report.uploaded or not self.leases.is_trusted(lease, time.monotonic()):
                    break
                yield report

    def progress(self, lease: Lease | None = None) -> Iterable[pb.Progress]:
        """What has changed since the last one, of trusted leases."""
        now = time.monotonic()
        for held in list(self._attempts.values()):
            mine = held.attempt.lease
            if lease in (None, mine) and self.leases.is_trusted(mine, now) and (due := held.attempt.progress.take()):
                self.leases.note_step(mine, due.step)
                yield due

    async def received(self, message: pb.GatewayMessage) -> None:
        """Acts on a message of the gateway. One that this version does not know is logged and ignored."""
        match message.WhichOneof("message"):
            case "assign":
                await self._assigned(message.assign)
            case "urls":
                self._urls.answered(message.urls)
            case "heartbeat_ack":
                await self._beat_acknowledged(message.heartbeat_ack)
            case "report_ack":
                await self._report_acknowledged(message.report_ack)
            case "cancel":
                self._cancelled(message.cancel.lease)
            case "revoke":
                await self._abandon(Lease.of(message.revoke.lease), message.revoke.reason)
            case "drain":
                log.info("The gateway drains this trainer", reason=message.drain.reason)
                self._draining = True
            case unknown:
                log.warning("A message of the gateway is not known here and is ignored", arm=unknown)

    # Assignments

    async def _assigned(self, assign: pb.Assign) -> None:
        assert self._session is not None
        lease = Lease.of(assign.lease)
        known = self._engine.known
        assert known is not None
        if lease not in self.leases:
            refusal = self.leases.refusal(assign, known.engines, known.slots, draining=self._draining)
            if refusal is not None:
                log.warning("An assignment is not taken", lease=str(lease), reason=refusal[0], details=refusal[1])
                rejected = pb.Rejected(lease=assign.lease, reason=refusal[0], details=refusal[1])
                return await self._session.send(pb.TrainerMessage(rejected=rejected))
            self._take(lease, assign)
        return await self._session.send(pb.TrainerMessage(accepted=pb.Accepted(lease=assign.lease)))

    def _take(self, lease: Lease, assign: pb.Assign) -> None:
        log.info("A tune is taken", lease=str(lease), engine=assign.engine, steps=assign.request.steps)
        self.leases.take(lease, time.monotonic(), assign.lease_duration.ToTimedelta().total_seconds())
        attempt = Attempt(assign, self._tools)
        self._attempts[lease] = _Held(attempt, asyncio.create_task(self._live(attempt)))
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
        if attempt.ending is Ending.ABANDONED or lease not in self.leases:
            await self.spool.drop(lease)
            self.leases.drop(lease)
        self.leases.note_result(lease)
        self._told()
        if lease not in self.leases:
            self._attempts.pop(lease, None)

    def _cancelled(self, message: pb.Lease) -> None:
        if (held := self._attempts.get(Lease.of(message))) is not None and held.attempt.ending is None:
            log.info("A tune is cancelled", lease=str(held.attempt.lease))
            held.attempt.end(Ending.CANCELLED)

    async def _abandon(self, lease: Lease, why: str) -> None:
        """The lease is not ours: stops at once, reports nothing, deletes the spool. The slot frees itself behind it."""
        if lease not in self.leases:
            return
        log.warning("A lease is lost", lease=str(lease), why=why)
        if (held := self._attempts.get(lease)) is not None:
            held.attempt.end(Ending.ABANDONED)
            if held.task.done():
                del self._attempts[lease]
        await self._forget(lease, "abandoned")

    # Answers to beats and reports

    async def _beat_acknowledged(self, ack: pb.HeartbeatAck) -> None:
        self.leases.acknowledged(ack)
        for lease in ack.lost:
            await self._abandon(Lease.of(lease), "the gateway counts it as lost")
        for lease in ack.cancelled:
            self._cancelled(lease)
        self._told()  # trust may have come back

    async def _report_acknowledged(self, ack: pb.ReportAck) -> None:
        lease = Lease.of(ack.lease)
        if ack.outcome == pb.REPORT_OUTCOME_STALE:
            return await self._abandon(lease, "the gateway called a report stale")
        report = await self.spool.acknowledged(lease, ack.report_seq)
        if report is not None and report.is_terminal:
            log.info("A tune has ended here", lease=str(lease), report=report.arm)
            self._attempts.pop(lease, None)
            await self._forget(lease, report.arm)
        self.reports_waiting.set()  # the window has moved
        return None

    async def _forget(self, lease: Lease, outcome: str) -> None:
        self.leases.drop(lease)
        self._urls.lost(lease)
        for key in [key for key in self._uploads if key[0] == lease]:
            self._uploads.pop(key).cancel()
        await self.spool.drop(lease)
        self._metrics.ended(outcome)
        self._count()
        if len(self.leases) == 0:
            self._emptied.set()

    # Objects

    def _told(self) -> None:
        """Something waits: uploads what has to be uploaded first, and wakes the session."""
        for lease in self.leases.all():
            for report in self.spool.waiting(lease):
                if not report.uploaded and (lease, report.seq) not in self._uploads:
                    self._uploads[lease, report.seq] = asyncio.create_task(self._upload(report))
        self.reports_waiting.set()
        self.progress_waiting.set()

    async def _upload(self, report: Report) -> None:
        assert report.file is not None
        assert report.object is not None
        name = report.object.name
        try:
            await self._put(report.lease, name, report.file)
        except LeaseLost as exc:
            return await self._abandon(report.lease, str(exc))
        except UrlRefused as exc:
            log.error("An upload is refused", lease=str(report.lease), why=str(exc))  # its report will be told so too
        except (OSError, httpx.InvalidURL) as exc:
            # The file is gone or cannot be read, or the URL is none. Its report goes out all the same: the gateway
            # finds nothing uploaded and lets another attempt follow, where silence would keep the lease for ever.
            log.error("A file of the spool cannot be sent", lease=str(report.lease), name=name, why=str(exc))
        report.uploaded = True
        self.reports_waiting.set()
        return None

    async def _put(self, lease: Lease, name: str, path: Path) -> None:
        await upload(self._client, path, lambda: self._urls.ask(lease, pb.METHOD_PUT, name))

    # Small things

    def _send_soon(self, message: pb.TrainerMessage) -> None:
        """Sends on the stream that there is; where there is none, what asks has to ask again."""
        if self._session is not None:
            task = asyncio.create_task(self._session.send(message))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    def _say_draining(self) -> None:
        self._send_soon(pb.TrainerMessage(draining=pb.Draining(reason="this trainer takes no more work")))

    def _free_slots(self) -> int:
        """None while the engine starts: a tune would only wait for it here instead of going elsewhere."""
        ready = self._engine.ready
        return max(0, ready.slots - len(self.leases)) if ready is not None and not self._draining else 0

    def _count(self) -> None:
        self._metrics.held.set(len(self.leases))

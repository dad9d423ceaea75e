"""Reports on the disk until the gateway has acknowledged them. Called by the supervisor; knows no stream.

A report is written, synced and only then sent; it is sent again after every Welcome, in order, until it is
acknowledged; so whatever dies in between, a result is not lost. On the disk:

    spool/{tune}.{epoch}/00000001.report    a TrainerMessage, serialized
    spool/{tune}.{epoch}/00000001.object    the file that must be uploaded before it is sent

What an earlier process left is taken up where its last report is terminal; the rest is swept: its engine is dead too.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from trainer.durable import sync, whole
from trainer.supervisor.leases import Lease
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

log = structlog.get_logger()

TERMINAL = ("finished", "failed", "cancel_observed", "lease_returned")
_FOLDER = re.compile(r"(?P<tune>[A-Za-z0-9_-]+)\.(?P<epoch>[0-9]+)")


@dataclass
class Report:
    """One report that waits to be acknowledged."""

    lease: Lease
    seq: int
    message: pb.TrainerMessage
    file: Path | None
    """What must be uploaded first."""
    uploaded: bool
    """Written by the uploader, read by the session: whether it may be sent."""

    @property
    def arm(self) -> str:
        """Which report it is."""
        return arm_of(self.message)

    @property
    def is_terminal(self) -> bool:
        """Whether it is its attempt's last."""
        return self.arm in TERMINAL

    @property
    def object(self) -> pb.UploadedObject:
        """What `file` is announced as: a LoRA, for a snapshot is uploaded before it is reported."""
        return self.message.finished.lora


class Spool:
    """All reports that wait. Writing happens in threads, one write at a time; the lists are the event loop's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reports: dict[Lease, list[Report]] = {}
        self._last_seq: dict[Lease, int] = {}
        self._writing = asyncio.Lock()  # keeps the disk's order that of the numbers

    def recover(self) -> list[Report]:
        """Reads what an earlier process left; returns the terminal reports. Blocks; called before anything else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        terminal = []
        for folder in sorted(self._folder.iterdir()):
            reports = list(_read(folder))
            if not reports or not reports[-1].is_terminal:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self._reports[reports[0].lease] = reports
            self._last_seq[reports[0].lease] = reports[-1].seq
            terminal.append(reports[-1])
        return terminal

    async def append(self, lease: Lease, message: pb.TrainerMessage, file: Path | None = None) -> Report:
        """Numbers a report and puts it on the disk. `file` is moved into the spool.

        Goes on to its end also where its caller is cancelled: the thread that writes does so too, and the next report
        must not take the same number.
        """
        return await asyncio.shield(self._appended(lease, message, file))

    async def _appended(self, lease: Lease, message: pb.TrainerMessage, file: Path | None) -> Report:
        async with self._writing:
            seq = self._last_seq.get(lease, 0) + 1
            getattr(message, arm_of(message)).report_seq = seq
            report = Report(lease, seq, message, file, uploaded=file is None)
            try:
                await asyncio.to_thread(self._write, report)
            except OSError as exc:
                # Better told once than never: where the disk is full, memory has to do.
                log.error("A report could not be spooled and is kept in memory only", lease=str(lease), error=str(exc))
            self._last_seq[lease] = seq
            self._reports.setdefault(lease, []).append(report)
        return report

    def waiting(self, lease: Lease) -> list[Report]:
        """The lease's reports, in order."""
        return list(self._reports.get(lease, ()))

    async def acknowledged(self, lease: Lease, seq: int) -> Report | None:
        """Forgets one report; returns it, or None where it is unknown."""
        reports = self._reports.get(lease, [])
        report = next((report for report in reports if report.seq == seq), None)
        if report is None:
            return None
        reports.remove(report)
        if report.is_terminal:
            await self.drop(lease)
        else:
            await asyncio.to_thread(self._delete, report)
        return report

    async def drop(self, lease: Lease) -> None:
        """Forgets all of a lease."""
        async with self._writing:
            self._reports.pop(lease, None)
            self._last_seq.pop(lease, None)
            await asyncio.to_thread(shutil.rmtree, self._folder / str(lease), ignore_errors=True)

    def _write(self, report: Report) -> None:
        folder = self._folder / str(report.lease)
        folder.mkdir(exist_ok=True)
        path = folder / f"{report.seq:08d}.report"
        if report.file is not None:  # first, and it takes no room: where there is none for the report, the file is safe
            report.file = report.file.replace(path.with_suffix(".object"))
        with whole(path) as temporary:
            temporary.write_bytes(report.message.SerializeToString())
        if report.seq == 1:
            sync(self._folder)

    def _delete(self, report: Report) -> None:
        path = self._folder / str(report.lease) / f"{report.seq:08d}.report"
        path.unlink(missing_ok=True)
        path.with_suffix(".object").unlink(missing_ok=True)


def arm_of(message: pb.TrainerMessage) -> str:
    """Which arm is set."""
    arm = message.WhichOneof("message")
    assert arm is not None
    return arm


def _read(folder: Path) -> Iterator[Report]:
    match = _FOLDER.fullmatch(folder.name)
    if match is None:
        return
    lease = Lease(match["tune"], int(match["epoch"]))
    for path in sorted(folder.glob("*.report")):
        try:
            message = pb.TrainerMessage.FromString(path.read_bytes())
        except (DecodeError, OSError) as exc:
            log.error("A spooled report cannot be read and is left out", path=str(path), error=str(exc))
            continue
        file = path.with_suffix(".object")
        yield Report(lease, int(path.stem), message, file if file.exists() else None, uploaded=not file.exists())

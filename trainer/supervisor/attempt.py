"""One attempt at a tune, from its Assign to its terminal report: files, engine, reports. Called by the supervisor.

Knows no stream: what it has to tell goes into the spool (what must not be lost) or into its Progress (the newest wins),
and the session takes it from there.

    downloads ── slot ── Start ── engine's messages ── Saved    ── Finished
         └── DownloadFailed ──────────────┬─────────── Broke    ── Failed
                                          ├─────────── EngineDied ─ Failed {crashed, retryable}
                                          └─ ended ─── Stopped  ── CancelObserved | LeaseReturned | nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import protovalidate
import structlog
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from trainer import pipe
from trainer.bases import digest
from trainer.failures import SnapshotRefused
from trainer.supervisor.child import Engine, EngineDied, Slot, TuneMessage
from trainer.supervisor.downloads import DownloadDamaged, DownloadFailed, Downloads, ServerAway, Wanted
from trainer.supervisor.effects import Ending
from trainer.supervisor.leases import Lease, LeaseLost
from trainer.supervisor.metrics import Metrics
from trainer.supervisor.progress import ProgressBuffer
from trainer.supervisor.snapshots import Snapshots
from trainer.supervisor.spool import Spool, arm_of
from trainer.supervisor.urls import UrlRefused
from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.v1 import tune_pb2

log = structlog.get_logger()

T = TypeVar("T")
CUT = 2000  # characters of details that the protocol lets through
SLOT_TIMEOUT = 600.0  # seconds to wait for an engine that does not come up


@dataclass(frozen=True)
class Tools:
    """What an attempt works with. All of it is shared between attempts."""

    downloads: Downloads
    engine: Engine
    spool: Spool
    work: Path
    """Folder of the work folders."""
    bases: Path | None
    """The operator's own builtin checkpoints."""
    fresh_url: Callable[[Lease, str], Awaitable[str]]
    """Asks the gateway for a signed GET; raises LeaseLost."""
    upload: Callable[[Lease, str, Path], Awaitable[float]]
    """Puts a file under a name of the attempt's own, however long that takes; raises LeaseLost, UrlRefused."""
    parting: float
    """Seconds for the last snapshot's upload where this process leaves."""
    metrics: Metrics
    """Steps are counted there."""
    told: Callable[[], None]
    """Something waits to be sent."""


class Attempt:
    """One attempt. `run` is its life; `end` may be called at any time."""

    def __init__(self, assign: pb.Assign, tools: Tools) -> None:
        self.lease = Lease.of(assign.lease)
        self.progress = ProgressBuffer(assign.lease, assign.request.steps)
        self.started = time.time()
        self.ending: Ending | None = None  # written by end; the first one counts, but a lost lease outweighs all
        self._assign = assign
        self._tools = tools
        self._ended = asyncio.Event()
        self._slot: Slot | None = None
        self._snapshots = Snapshots(partial(tools.upload, self.lease), self._tell_snapshot, self._snapshot_uploaded)
        self._folder = tools.work / str(self.lease)

    def end(self, ending: Ending) -> None:
        """Ends it early: within a step where it trains, at once where it downloads."""
        if self.ending is None or ending is Ending.ABANDONED:
            self.ending = ending
        self._ended.set()

    async def run(self) -> None:
        """Returns when the terminal report is in the spool, or none is due."""
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            self._enter(tune_pb2.TUNE_PHASE_DOWNLOADING)
            start = await self._unless_ended(self._prepare())
            self._slot = await self._unless_ended(self._free_slot())
            training = self._tools.engine.train(self._slot, start, self._ended, self._stop)
            async with contextlib.aclosing(training) as messages:
                async for message in messages:
                    await self._tell(message)
        except _Ended:
            await self._tell_end(0)
        except DownloadFailed as exc:
            await self._fail(exc.reason, exc.details, retryable=exc.retryable)
        except ServerAway as exc:
            # No fault of the tune's, nor perhaps of this trainer's: it costs no attempt.
            await self._event(warning=pb.Warning(reason="STORE_AWAY", details=said(str(exc), CUT)))
            self.end(Ending.RETURNED)
            await self._tell_end(0)
        except EngineDied as exc:
            if self.ending is None:
                await self._fail(exc.reason, exc.details, retryable=True, crashed=True)
            else:
                await self._tell_end(self.progress.step)
        except UrlRefused as exc:
            await self._fail("DOWNLOAD_FAILED", str(exc), retryable=True)
        except LeaseLost:
            self.end(Ending.ABANDONED)
        except OSError as exc:
            reason = "DISK_FULL" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else "DISK_FAULT"
            await self._fail(reason, f"the trainer's disk: {exc.strerror}", retryable=True)
        finally:
            await self._snapshots.drop()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    # Before the engine

    async def _prepare(self) -> pipe.Start:
        assign = self._assign
        checkpoint = asyncio.create_task(self._checkpoint())
        snapshot = asyncio.create_task(self._snapshot())
        pictures = [asyncio.create_task(self._picture(picture)) for picture in assign.pictures]
        tasks: list[asyncio.Task[Any]] = [checkpoint, snapshot, *pictures]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        request = assign.request
        return pipe.Start(
            tune_id=self.lease.tune_id,
            epoch=self.lease.epoch,
            engine=assign.engine,
            steps=request.steps,
            trigger_word=request.trigger_words[0] if request.trigger_words else "",
            pictures=[picture.result() for picture in pictures],
            checkpoint=checkpoint.result(),
            folder=str(self._folder),
            seed=request.seed if request.HasField("seed") else None,
            resize_images=request.resize_images if request.HasField("resize_images") else None,
            hyperparameters=hyperparameters(request.hyperparameters),
            continue_on_rejection=assign.continue_on_rejection,
            resolved_recipe=json.loads(assign.resolved_recipe.json) if assign.HasField("resolved_recipe") else None,
            snapshot=snapshot.result(),
        )

    async def _picture(self, picture: pb.Picture) -> pipe.PictureFile:
        path = await self._fetch(f"pictures/{picture.file_id}", picture.sha256, picture.size_bytes, picture.url)
        return pipe.PictureFile(picture.file_id, str(path), picture.sha256, picture.caption)

    async def _checkpoint(self) -> pipe.CheckpointSource:
        checkpoint = self._assign.checkpoint
        if checkpoint.HasField("builtin"):
            return await self._builtin(checkpoint.builtin)
        if checkpoint.HasField("hugging_face"):
            there = checkpoint.hugging_face
            return pipe.CheckpointSource(
                "hugging_face", there.repository, f"{there.repository}@{there.commit}", there.commit
            )
        source = checkpoint.object
        path = await self._fetch("checkpoint", source.sha256, source.size_bytes, source.url)
        link = self._folder / "checkpoint.safetensors"  # readers go by the suffix
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return pipe.CheckpointSource("single_file", str(link), source.sha256)

    async def _builtin(self, builtin: pb.BuiltinCheckpoint) -> pipe.CheckpointSource:
        """By its content, for the recipe promises the same bytes only on the same base."""
        for folder in _builtin_folders(builtin.name, self._tools.bases):
            with contextlib.suppress(FileNotFoundError):  # no such folder, or nothing in it: the next one
                found = await asyncio.to_thread(digest.sha256, folder)
                if builtin.sha256 not in ("", found):
                    details = f"this trainer's {builtin.name!r} has the SHA-256 {found}; {builtin.sha256} was wanted"
                    raise DownloadFailed("CHECKPOINT_DIFFERS", details)
                return pipe.CheckpointSource("folder", str(folder), found)
        raise DownloadFailed("UNKNOWN_CHECKPOINT", f"this trainer has no builtin checkpoint {builtin.name!r}")

    async def _snapshot(self) -> str | None:
        if not self._assign.HasField("snapshot"):
            return None
        snapshot = self._assign.snapshot
        try:
            return str(await self._fetch("snapshot", snapshot.sha256, snapshot.size_bytes, snapshot.url))
        except DownloadDamaged as exc:  # the same word as where the engine cannot use it: there is one before it
            raise DownloadFailed(SnapshotRefused.reason, exc.details) from exc

    async def _fetch(self, name: str, sha256: str, size_bytes: int, url: str) -> Path:
        """`url` empty: the gateway had no room for it in the Assign."""
        wanted = Wanted(name, sha256, size_bytes, url or await self._tools.fresh_url(self.lease, name))
        return await self._tools.downloads.fetch(wanted, lambda: self._tools.fresh_url(self.lease, name))

    async def _free_slot(self) -> Slot:
        try:
            async with asyncio.timeout(SLOT_TIMEOUT):
                return await self._tools.engine.slot(self.lease)
        except TimeoutError:
            # No fault of the tune's: another trainer shall have it, and it costs no attempt.
            self.end(Ending.RETURNED)
            raise _Ended from None

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        task, ended = asyncio.create_task(work), asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Ended
        finally:
            task.cancel()
            ended.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)

    # What the engine says

    async def _tell(self, message: TuneMessage) -> None:
        if self.ending is Ending.ABANDONED:
            return
        match message:
            case pipe.PhaseChanged():
                self._tools.metrics.entered(message.phase)
                self._enter(phase_of(message.phase))
            case pipe.Stepped():
                self.progress.note_steps(message.steps)
                self._tools.metrics.stepped(message.steps)
                self._tools.told()
            case pipe.Snapshotted():
                self._snapshots.add(message)
            case pipe.Judged():
                await self._event(
                    verdict=pb.Verdict(
                        file_id=message.file_id,
                        accepted=message.accepted,
                        reason=message.reason,
                        details=said(message.details, CUT),
                    )
                )
            case pipe.Resolved():
                await self._event(resolved_recipe=pb.ResolvedRecipe(json=message.json, sha256=message.sha256))
            case pipe.Warned():
                await self._event(warning=pb.Warning(reason=message.reason, details=said(message.details, CUT)))
            case pipe.Saved():
                await self._finish(message)
            case pipe.Broke():
                await self._fail(message.reason, message.details, retryable=message.retryable)
            case pipe.Stopped():
                await self._tell_end(message.step)

    def _enter(self, phase: tune_pb2.TunePhase.ValueType) -> None:
        self.progress.note_phase(phase)
        self._tools.told()

    async def _event(self, **arm: Any) -> None:  # noqa: ANN401  (one arm of Event, by its name)
        await self._report(pb.TrainerMessage(event=pb.Event(lease=self.lease.message(), **arm)))

    def _stop(self) -> pipe.Stop:
        return pipe.Stop(self.lease.tune_id, self.lease.epoch, snapshot=self.ending is Ending.RETURNED)

    async def _tell_snapshot(self, taken: pipe.Snapshotted, name: str) -> None:
        uploaded = pb.UploadedObject(name=name, sha256=taken.sha256, size_bytes=taken.size_bytes)
        ready = pb.SnapshotReady(lease=self.lease.message(), step=taken.step, object=uploaded)
        await self._report(pb.TrainerMessage(snapshot_ready=ready))

    def _snapshot_uploaded(self, seconds: float) -> None:
        if self._slot is not None:
            self._slot.tell(pipe.SnapshotUploaded(self.lease.tune_id, self.lease.epoch, seconds))

    async def _finish(self, saved: pipe.Saved) -> None:
        await self._snapshots.drop()
        lora = pb.UploadedObject(name="lora.safetensors", sha256=saved.sha256, size_bytes=saved.size_bytes)
        finished = pb.Finished(
            lease=self.lease.message(),
            lora=lora,
            step=saved.step,
            final_loss=saved.final_loss,
            pictures=saved.pictures,
        )
        await self._report(pb.TrainerMessage(finished=finished), Path(saved.path))

    async def _fail(self, reason: str, details: str, *, retryable: bool, crashed: bool = False) -> None:
        await self._snapshots.drop()
        log.warning("The attempt failed", lease=str(self.lease), reason=reason, details=details, retryable=retryable)
        failed = pb.Failed(
            lease=self.lease.message(),
            reason=reason[:64] or "UNKNOWN",
            details=said(details, 5 * CUT),
            retryable=retryable,
            crashed=crashed,
        )
        await self._report(pb.TrainerMessage(failed=failed))

    async def _tell_end(self, step: int) -> None:
        lease = self.lease.message()
        await self._snapshots.settle(self._tools.parting if self.ending is Ending.RETURNED else 0)
        if self.ending is Ending.CANCELLED:
            await self._report(pb.TrainerMessage(cancel_observed=pb.CancelObserved(lease=lease, step=step)))
        elif self.ending is Ending.RETURNED:
            await self._report(pb.TrainerMessage(lease_returned=pb.LeaseReturned(lease=lease, step=step)))
        elif self.ending is None:
            await self._fail("ENGINE_STOPPED", "the engine stopped the tune unasked", retryable=True, crashed=True)

    async def _report(self, message: pb.TrainerMessage, file: Path | None = None) -> None:
        if self.ending is Ending.ABANDONED:
            return
        getattr(message, arm_of(message)).report_seq = 1  # the spool knows the right one
        protovalidate.validate(message)  # the gateway would cut us off for it, again and again
        await self._tools.spool.append(self.lease, message, file)
        self._tools.told()


class _Ended(Exception):
    """`end` was called before the engine had the tune."""


def hyperparameters(message: tune_pb2.Hyperparameters) -> dict[str, pipe.Hyperparameter]:
    """Those that are set, by their names in the proto; an enum by its lower-case value without prefix."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def said(text: str, most: int) -> str:
    """Text as the protocol lets it through: cut to length, and without U+0000, which no database stores."""
    return text.replace("\x00", "")[:most]


def phase_of(name: str) -> tune_pb2.TunePhase.ValueType:
    """The engine's word for a phase as the enum's value; an unknown one is UNSPECIFIED."""
    full = f"TUNE_PHASE_{name.upper()}"
    return tune_pb2.TunePhase.Value(full) if full in tune_pb2.TunePhase.keys() else tune_pb2.TUNE_PHASE_UNSPECIFIED  # noqa: SIM118


def _plain(field: FieldDescriptor, value: Any) -> pipe.Hyperparameter:  # noqa: ANN401  (protobuf's own)
    if field.enum_type is None:
        plain: pipe.Hyperparameter = value
        return plain
    kind: EnumDescriptor = field.enum_type
    prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in kind.name).lstrip("_")
    return str(kind.values_by_number[value].name).removeprefix(f"{prefix}_").lower()


def _builtin_folders(name: str, bases: Path | None) -> list[Path]:
    """Where a builtin checkpoint may lie: the operator's folder before the package's own."""
    package = importlib.util.find_spec("trainer.bases")
    ours = Path(package.origin).parent if package is not None and package.origin else None
    folders = [] if bases is None else [bases / name]
    return folders if ours is None else [*folders, ours / name.replace("-", "_") / "model"]

"""Keeps one engine process alive and speaks trainer.pipe with it. Called by the supervisor and by attempts.

Knows no stream and no torch. The engine dies with its pipe, and a hung one is killed with its whole process group:

    run ── spawn ── Ready ──────────────────────── death ── back-off ── spawn ...
                      └─ train: Start ── messages ──┘ EngineDied to every tune in its slots
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from trainer import pipe
from trainer.supervisor.backoff import Backoff
from trainer.supervisor.leases import Lease

log = structlog.get_logger()

COMMAND = (sys.executable, "-m", "trainer.engine")
LINE_LIMIT = 16 << 20  # bytes; the longest line is a resolved recipe
READY_DEADLINE = 300.0  # seconds from spawn to Ready: torch on a cold disk
STOP_DEADLINE = 60.0  # seconds from Stop to the end of the tune; a step or a snapshot may be under way
END_GRACE = 3.0  # seconds from the closing of the pipe to SIGKILL
STEADY = 60.0  # seconds of life after which a death counts as the first again

#: Seconds that the engine may be silent in each phase before it counts as hung.
PHASE_DEADLINES = {"judging": 600.0, "loading": 3600.0, "encoding": 1800.0, "training": 1800.0, "saving": 600.0}
STEP_FACTOR = 50.0  # a step that takes so many times the median one has hung

TuneMessage: TypeAlias = (
    pipe.PhaseChanged
    | pipe.Judged
    | pipe.Resolved
    | pipe.Warned
    | pipe.Stepped
    | pipe.Snapshotted
    | pipe.Saved
    | pipe.Broke
    | pipe.Stopped
)
TERMINAL = (pipe.Saved, pipe.Broke, pipe.Stopped)
NOTHING = pipe.Memory(0, 0)  # what no process takes


class EngineDied(Exception):
    """The engine process ended, or was ended, while a tune was in one of its slots."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason
        self.details = details


class Engine:
    """The engine child, started anew whenever it dies.

    Args:
        changed: Called when it becomes ready, dies, or holds other base models.
        environment: All of the child's.
        step_deadline: Least seconds without a step that count as a hang.
        command: Of the child; tests put a script there.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        environment: Mapping[str, str],
        step_deadline: float,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.ready: pipe.Ready | None = None  # the newest process's; None while there is none
        self.known: pipe.Ready | None = None  # the last one's, also while a new one starts
        self.resident: tuple[str, ...] = ()
        self.memory_bytes = 0
        self.takes = NOTHING  # read by a scrape's thread
        self.restarts = 0
        self._changed = changed
        self._environment = environment
        self._step_deadline = step_deadline
        self._command = command
        self._process: _Process | None = None
        self._slots = asyncio.Condition()  # notified when one is freed, or a new process is ready
        self._running: set[Lease] = set()

    async def run(self) -> None:
        """Runs until cancelled, and then ends the process."""
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            started = time.monotonic()
            died = await self._live()
            log.error("The engine has died", reason=died.reason, details=died.details, action="engine_restart")
            if time.monotonic() - started > STEADY:
                backoff.reset()
            await asyncio.sleep(backoff.next())
            self.restarts += 1

    async def slot(self, lease: Lease) -> Slot:
        """Waits for a free slot of a living process. It is given back by `train`, which has to follow at once."""
        async with self._slots:
            await self._slots.wait_for(lambda: self.ready is not None and len(self._running) < self.ready.slots)
            assert self._process is not None
            self._running.add(lease)
            return Slot(lease, self._process)

    async def train(
        self, slot: Slot, start: pipe.Start, ended: asyncio.Event, stop: Callable[[], pipe.Stop]
    ) -> AsyncGenerator[TuneMessage]:
        """Trains one tune; yields what the engine says, up to Saved, Broke or Stopped. `ended` set: it is told to stop,
        as `stop` says.

        Raises:
            EngineDied: The process ended or hung.
        """
        process = slot.process
        heard = process.open(slot.lease)
        stopping = asyncio.create_task(_stop_when(ended, process, stop))
        deadline = _Deadline(self._step_deadline, ended)
        over = False
        try:
            process.send(start)
            while not over:
                message = await self._next(process, heard, deadline)
                over = isinstance(message, TERMINAL)
                yield message
        finally:
            if not over:  # nobody listens any more, and only the process's end surely ends the tune
                process.kill(EngineDied("ENGINE_DIED", "the engine process was ended amid a tune"))
            stopping.cancel()
            process.close(slot.lease)
            self._running.discard(slot.lease)
            async with self._slots:
                self._slots.notify_all()

    @property
    def pid(self) -> int | None:
        """Of the newest process."""
        return self._process.pid if self._process is not None else None

    async def _next(
        self, process: _Process, heard: asyncio.Queue[TuneMessage | EngineDied], deadline: _Deadline
    ) -> TuneMessage:
        try:
            message = await deadline.wait(heard)
        except TimeoutError:
            died = EngineDied("ENGINE_HUNG", f"the engine made no progress for {deadline.seconds():.0f} s")
            process.kill(died)
            raise died from None
        if isinstance(message, EngineDied):
            raise message
        deadline.heard(message)
        return message

    async def _live(self) -> EngineDied:
        """One process, from spawn to death."""
        process = await _Process.spawn(self._command, self._environment)
        self._process = process
        try:
            async with asyncio.timeout(READY_DEADLINE) as until_ready:
                async for message in process.messages():
                    if isinstance(message, pipe.Ready):
                        until_ready.reschedule(None)
                        await self._note_ready(message)
                    elif isinstance(message, pipe.Resident):
                        self.resident, self.memory_bytes = tuple(message.checkpoints), message.memory_bytes
                        self._changed()
                    elif isinstance(message, pipe.Memory):  # comes with every few steps, and no gateway asks for it
                        self.takes = message
            died = await process.died()
        except TimeoutError:
            died = EngineDied("ENGINE_HUNG", f"the engine was not ready within {READY_DEADLINE:.0f} s")
        except ValueError as exc:
            died = EngineDied("ENGINE_DIED", f"the engine broke the pipe's protocol: {exc}")
        finally:
            self.ready, self.resident, self.memory_bytes, self.takes, self._process = None, (), 0, NOTHING, None
            await process.end()
            self._changed()
        process.bury(died)
        return died

    async def _note_ready(self, ready: pipe.Ready) -> None:
        self.ready = self.known = ready
        log.info("The engine is ready", engines=ready.engines, device=ready.device_name, slots=ready.slots)
        self._changed()
        async with self._slots:
            self._slots.notify_all()


@dataclass(frozen=True)
class Slot:
    """A free slot of one process, kept for one tune."""

    lease: Lease
    process: _Process

    def tell(self, message: pipe.ToChild) -> None:
        """Tells the engine of the tune in it; nothing where the process has died meanwhile."""
        self.process.send(message)


class _Process:
    """One engine process and its two pipes."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        transports: tuple[asyncio.BaseTransport, ...],
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._transports = transports
        self._tunes: dict[Lease, asyncio.Queue[TuneMessage | EngineDied]] = {}
        self._killed_for: EngineDied | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str]) -> _Process:
        """Starts a process in a process group of its own, so that it can be killed whole."""
        child_in, our_out = os.pipe()
        our_in, child_out = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command, "--in", str(child_in), "--out", str(child_out),
                pass_fds=(child_in, child_out), stdin=asyncio.subprocess.DEVNULL, env=dict(environment),
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(our_in)
            os.close(our_out)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_LIMIT)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(our_in, "rb")
        )
        outgoing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(our_out, "wb"))
        return cls(process, reader, (outgoing, incoming))

    async def messages(self) -> AsyncIterator[pipe.Ready | pipe.Resident | pipe.Memory]:
        """Hands tunes what is theirs and yields the rest, until the pipe closes."""
        while line := await self._reader.readline():
            message = pipe.decode(line)
            if isinstance(message, pipe.Ready | pipe.Resident | pipe.Memory):
                yield message
            elif not isinstance(message, pipe.Start | pipe.Stop | pipe.SnapshotUploaded) and (
                tune := self._tunes.get(Lease(message.tune_id, message.epoch))
            ):
                tune.put_nowait(message)

    def send(self, message: pipe.ToChild) -> None:
        """Tells the engine. A process that is just dying does not hear it; its death is told to the tune."""
        outgoing = self._transports[0]
        assert isinstance(outgoing, asyncio.WriteTransport)
        if not outgoing.is_closing():
            outgoing.write(pipe.encode(message))

    def open(self, lease: Lease) -> asyncio.Queue[TuneMessage | EngineDied]:
        """Where a tune hears what is its own."""
        return self._tunes.setdefault(lease, asyncio.Queue())

    def close(self, lease: Lease) -> None:
        """The tune listens no more."""
        self._tunes.pop(lease, None)

    def kill(self, why: EngineDied) -> None:
        """SIGKILL to the whole process group."""
        self._killed_for = self._killed_for or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def died(self) -> EngineDied:
        """Waits for the exit code; the pipe has closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_GRACE):
                await self._process.wait()
        code = self._process.returncode
        if self._killed_for is not None:
            return self._killed_for
        said = "closed its pipe" if code is None else f"ended by {_signal(code)}" if code < 0 else f"exited with {code}"
        return EngineDied("ENGINE_DIED", f"the engine process {said}")

    def bury(self, died: EngineDied) -> None:
        """Tells every tune that was in it."""
        for tune in self._tunes.values():
            tune.put_nowait(died)

    async def end(self) -> None:
        """Closes the pipes, on which it ends by itself, and kills what has not ended within the grace time."""
        self._transports[0].close()
        try:
            async with asyncio.timeout(END_GRACE):  # wait_for may swallow a cancellation when the process just ends
                await self._process.wait()
        except TimeoutError:
            log.warning("The engine did not end with its pipe and is killed", pid=self.pid)
        finally:
            # What the engine itself has started goes too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._transports[1].close()
            await self._process.wait()


class _Deadline:
    """How long the engine may be silent: by phase, and in training by the tune's own measured step time."""

    def __init__(self, step_deadline: float, ended: asyncio.Event) -> None:
        self._step_deadline = step_deadline
        self._ended = ended
        self._phase = "judging"
        self._paces: deque[float] = deque(maxlen=20)  # seconds that each of the last steps took

    def seconds(self) -> float:
        """From the last message on."""
        if self._phase == "training" and self._paces:
            return max(self._step_deadline, STEP_FACTOR * statistics.median(self._paces))
        return max(self._step_deadline, PHASE_DEADLINES.get(self._phase, 600.0))

    def heard(self, message: TuneMessage) -> None:
        """The engine lives."""
        if isinstance(message, pipe.PhaseChanged):
            self._phase = message.phase
        elif isinstance(message, pipe.Stepped):
            self._paces.extend(line.seconds for line in message.steps)

    async def wait(self, heard: asyncio.Queue[TuneMessage | EngineDied]) -> TuneMessage | EngineDied:
        """The next message. Once the tune is told to stop, another clock counts.

        Raises:
            TimeoutError: Too late.
        """
        getting = asyncio.create_task(heard.get())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({getting, ended}, timeout=self.seconds(), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done() and ended.done():
                await asyncio.wait({getting}, timeout=min(self.seconds(), STOP_DEADLINE))
            if not getting.done():
                raise TimeoutError
            return getting.result()
        finally:
            getting.cancel()
            ended.cancel()


async def _stop_when(ended: asyncio.Event, process: _Process, stop: Callable[[], pipe.Stop]) -> None:
    await ended.wait()
    process.send(stop())


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

"""A simulated trainer host: a disk that survives, and processes one after the other that do what TrainerEnd decides.
One that ends is started again.

What an engine does is drawn by lot: the pace of its steps, when it takes a snapshot.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from gateway.status import Refusal
from tests.simulation.clock import Life
from tests.simulation.network import END, Stream
from trainer import pipe
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
    Leave,
    Stored,
    Upload,
)
from trainer.supervisor.leases import Lease
from trainer.supervisor.progress import ProgressBuffer
from trainer.supervisor.protocol import Ability, TrainerEnd
from trainer.supervisor.spool import Report, arm_of
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

if TYPE_CHECKING:
    from tests.simulation.world import World

ENGINE = "image/stable-diffusion-v1-5"
ENGINE_START = 3.0  # seconds


class Trainer:
    """One host. Its clock began at some time of its own, and runs too fast or too slow, by less than the margin."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        self.world = world
        self.name = name
        self.slots = slots
        self.disk: dict[Lease, list[Report]] = {}
        self.boots = itertools.count(1)
        self.process: Process | None = None
        self._offset = world.chance.uniform(0.0, 1e6)
        self.pace = world.chance.uniform(0.92, 1.08)
        self.start()

    def now(self) -> float:
        """By its own monotonic clock."""
        return self._offset + self.world.clock.now * self.pace

    def start(self) -> None:
        """A new process takes up what the disk has."""
        self.process = Process(self)

    def kill(self, restart_after: float) -> None:
        """SIGKILL; the disk stays."""
        if self.process is not None:
            self.process.die()
            self.process = None
            self.world.clock.after(restart_after, self.start)


class Process:
    """One boot of a trainer."""

    def __init__(self, host: Trainer) -> None:
        self._host = host
        self._world = host.world
        self._life = Life(host.world.clock)
        self._boot = f"{host.name}-{next(host.boots)}"
        self.end = TrainerEnd(host.name, self._boot, "1.0", self, len(host.world.gateways))
        self._sessions = itertools.count(1)
        self.stream: Stream | None = None
        self._unwelcomed: list[Stream] = []
        self._attempts: dict[Lease, Attempt] = {}
        self._asked: dict[int, tuple[pb.UrlRequest, Callable[[], None]]] = {}
        self._request_ids = itertools.count(1)
        self._engine_ready = True
        self._left = False
        self._wakes: set[float] = set()
        for lease, reports in list(host.disk.items()):
            if reports and reports[-1].is_terminal:
                for report in reports:
                    report.uploaded = report.file is None
                host.world.witness.recovered(lease)
                self._upload(self.end.recover(reports[-1]))
            else:
                del host.disk[lease]
        self._connect()

    # Faults

    def die(self) -> None:
        """SIGKILL: the kernel closes the stream."""
        self.say("is killed")
        self._life.end()
        for stream in self._unwelcomed:
            stream.to_gateway.close_at_once()
        if self.stream is not None:
            self.stream.to_gateway.send(END)

    def crash_engine(self) -> None:
        """The engine process dies, and another one starts."""
        if not self._engine_ready:
            return
        self.say("its engine dies")
        self._engine_ready = False
        self._life.after(ENGINE_START, self._engine_is_back)
        for attempt in list(self._attempts.values()):
            attempt.crash()
        self._beat_soon()

    def _engine_is_back(self) -> None:
        self._engine_ready = True
        self._beat_soon()

    def _beat_soon(self) -> None:
        self.end.beat_soon()
        self._pump()

    def freeze(self) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self._life.freeze(self._world.chance.choice([3.0, 20.0, 60.0]))

    def leave(self) -> None:
        """SIGTERM."""
        self.say("is told to leave")
        self._perform(self.end.drain())
        self._life.after(20.0, self._exit)

    def _exit(self) -> None:
        if not self._life.is_over:
            self._host.kill(self._world.chance.uniform(1.0, 5.0))

    # What the protocol reads

    def ability(self) -> Ability:
        return Ability([ENGINE], self._host.slots, self._engine_ready, device_memory_bytes=64 << 30)

    def waiting(self, lease: Lease) -> Sequence[Report]:
        return list(self._host.disk.get(lease, ()))

    def progress(self, lease: Lease) -> pb.Progress | None:
        attempt = self._attempts.get(lease)
        return None if attempt is None else attempt.progress.take()

    # The stream

    def _connect(self) -> None:
        if self._life.is_over:
            return
        stream = self._world.dial(self._host.name)
        if stream is None:
            self._life.after(self._world.chance.uniform(0.5, 3.0), self._connect)
            return
        self.stream = stream
        self._unwelcomed.append(stream)
        stream.to_trainer.receive = lambda item: self._life.after(0.0, lambda: self._heard(stream, item))
        self.end.opened(f"{self._boot}-{next(self._sessions):08d}", self._host.now())
        self._pump()

    def _heard(self, stream: Stream, item: Any) -> None:
        if stream is not self.stream or self._life.is_over:
            return
        if isinstance(item, pb.GatewayMessage):
            self._world.witness.told(self._boot, item)
            self._perform(self.end.received(item, self._host.now()))
        else:
            self.say(f"its stream has ended: {item if item is not END else 'no more is heard'}")
            self._world.witness.ended(self._host.name, item)
            self._left |= isinstance(item, Refusal) and item.code is grpc.StatusCode.ALREADY_EXISTS
            self._close()

    def _close(self) -> None:
        assert self.stream is not None
        self.stream.to_gateway.send(END)
        self.stream = None
        self.end.lost()
        if self._left:
            self._exit()
        else:
            self._life.after(self._world.chance.uniform(0.25, 2.0), self._connect)

    def _pump(self) -> None:
        """Sends what is to be sent, and comes again when more will be."""
        if self.stream is None or self._life.is_over:
            return
        now = self._host.now()
        while (message := self.end.next_message(now)) is not None:
            self._world.witness.published(self._host.name, self._boot, message)
            self.stream.to_gateway.send(message)
        if self._left:
            self._close()
            return
        for time in (self.end.wakes_at(now), self.end.gives_up_at(now)):
            if time is not None and time not in self._wakes:
                self._wakes.add(time)
                self._life.after((time - now) / self._host.pace + 1e-6, partial(self._wake, time))

    def _wake(self, time: float) -> None:
        self._wakes.discard(time)
        self._perform(self.end.look(self._host.now()))

    # What the protocol decides

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Greeted():
                    self._unwelcomed.pop()
                    for request, _ in self._asked.values():
                        self.end.ask(request)
                    for each in self._attempts.values():
                        each.progress.tell_again()
                case Stored(lease, step):
                    if (attempt := self._attempts.get(lease)) is not None:
                        attempt.progress.stored(step)
                case Begin(assign):
                    self._attempts[Lease.of(assign.lease)] = Attempt(self, assign)
                    self._world.witness.begun(self._boot, len(self.end.leases), self._host.slots)
                case End(lease, ending, _):
                    if (attempt := self._attempts.get(lease)) is not None:
                        attempt.stop(ending)
                case Delete(lease, report_seq):
                    reports = self._host.disk[lease]
                    self._host.disk[lease] = [report for report in reports if report.seq != report_seq]
                case Forget(lease, outcome):
                    self.say(f"forgets {lease}: {outcome}")
                    self._host.disk.pop(lease, None)
                    self._attempts.pop(lease, None)
                    self._asked = {id: each for id, each in self._asked.items() if Lease.of(each[0].lease) != lease}
                case Hand(urls):
                    if (asked := self._asked.pop(urls.request_id, None)) is not None:
                        self.later(0.05, 2.0, asked[1])
                case Close(why):
                    self.say(f"closes its stream: {why}")
                    self._close()
                case Leave():
                    self._left = True
                    if self.stream is None:
                        self._exit()
        self._pump()

    # What attempts do

    def spool(self, lease: Lease, message: pb.TrainerMessage, file: bool = False) -> None:
        """Numbers a report and puts it on the disk."""
        attempt = self._attempts[lease]
        attempt.reports += 1
        getattr(message, arm_of(message)).report_seq = attempt.reports
        report = Report(lease, attempt.reports, message, Path("object") if file else None, uploaded=not file)
        self._host.disk.setdefault(lease, []).append(report)
        self._upload(self.end.spooled())
        self._pump()

    def put(self, lease: Lease, name: str, then: Callable[[], None]) -> None:
        """Asks for a URL and puts an object there."""
        wanted = pb.ObjectName(method=pb.METHOD_PUT, name=name)
        request = pb.UrlRequest(request_id=next(self._request_ids), lease=lease.message(), objects=[wanted])

        def done() -> None:
            self._world.objects.add((lease.tune_id, lease.epoch, name))
            then()

        self._asked[request.request_id] = (request, done)
        self.end.ask(request)
        self._pump()

    def _upload(self, uploads: Iterable[Upload]) -> None:
        for report in (each.report for each in uploads):
            assert report.object is not None
            self.put(report.lease, report.object.name, partial(self._uploaded, report))

    def _uploaded(self, report: Report) -> None:
        self.end.uploaded(report)
        self._pump()

    def told(self) -> None:
        """There is progress."""
        self._pump()

    def later(self, least: float, most: float, act: Callable[[], None]) -> None:
        """Does it after a time drawn by lot."""
        self._life.after(self._world.chance.uniform(least, most), act)

    def say(self, text: str) -> None:
        """To the trace."""
        self._world.say(self._boot, text)


class Attempt:
    """One attempt in one process: steps, a snapshot now and then, a last report."""

    def __init__(self, process: Process, assign: pb.Assign) -> None:
        self.reports = 0
        self.progress = ProgressBuffer(assign.lease, assign.request.steps)
        self._process = process
        self._lease = Lease.of(assign.lease)
        self._steps = assign.request.steps
        self._step = assign.snapshot.step
        self._ending: Ending | None = None
        self._is_over = False
        process.say(f"takes {self._lease} from step {self._step}")
        process.later(0.1, 3.0, self._judge)

    def stop(self, ending: Ending) -> None:
        """Within a step."""
        self._ending = ending
        if ending is Ending.ABANDONED:
            self._is_over = True
        self._process.later(0.05, 1.0, self._end)

    def crash(self) -> None:
        """The engine has died under it."""
        failed = pb.Failed(lease=self._lease.message(), reason="ENGINE_DIED", retryable=True, crashed=True)
        self._last(pb.TrainerMessage(failed=failed))

    def _judge(self) -> None:
        if self._is_over:
            return
        for reason in ("FIRST", "SECOND"):
            event = pb.Event(lease=self._lease.message(), warning=pb.Warning(reason=reason))
            self._process.spool(self._lease, pb.TrainerMessage(event=event))
        self._process.later(0.3, 2.0, self._train)

    def _train(self) -> None:
        if self._is_over or self._ending is not None:
            return
        self._step += 1
        self.progress.note_steps([pipe.StepLine(self._step, 1.0 / self._step, 1e-4, 1.0, 1.0)])
        self._process.told()
        if self._is_over:
            return
        if self._step >= self._steps:
            self._finish()
            return
        if self._step % 4 == 0:
            self._snap(self._step)
        self._process.later(0.3, 3.0, self._train)

    def _snap(self, step: int) -> None:
        name = f"snapshots/{step}.safetensors"
        self._process.put(self._lease, name, lambda: self._snapped(step, name))

    def _snapped(self, step: int, name: str) -> None:
        if not self._is_over:
            ready = pb.SnapshotReady(lease=self._lease.message(), step=step, object=_object(name))
            self._process.spool(self._lease, pb.TrainerMessage(snapshot_ready=ready))

    def _finish(self) -> None:
        lora = _object("lora.safetensors")
        finished = pb.Finished(lease=self._lease.message(), lora=lora, step=self._step, pictures=1)
        self._last(pb.TrainerMessage(finished=finished), file=True)

    def _end(self) -> None:
        lease = self._lease.message()
        if self._ending is Ending.CANCELLED:
            self._last(pb.TrainerMessage(cancel_observed=pb.CancelObserved(lease=lease, step=self._step)))
        elif self._ending is Ending.RETURNED:
            self._last(pb.TrainerMessage(lease_returned=pb.LeaseReturned(lease=lease, step=self._step)))

    def _last(self, message: pb.TrainerMessage, file: bool = False) -> None:
        if not self._is_over:
            self._is_over = True
            self._process.spool(self._lease, message, file)


def _object(name: str) -> pb.UploadedObject:
    return pb.UploadedObject(name=name, sha256="0" * 64, size_bytes=1)

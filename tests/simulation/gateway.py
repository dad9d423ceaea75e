"""A simulated gateway: sessions that do what GatewayEnd decides, a dispatcher, a reaper, on the model of the store.

A question to the database takes its time, and may be committed though the gateway that asked has died, or though it is
told that the database is away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from gateway import protocol
from gateway.breaches import evicted, going_away
from gateway.protocol import Answer, Effect, GatewayEnd, Record, Request
from gateway.status import Refusal
from gateway.trainers import ADMISSION
from store.attempts import HeldAction, LeaseRef, Snapshot
from store.reports import LoraResult, Outcome
from store.trainers import Hello
from tests.simulation.clock import Life
from tests.simulation.network import END, Stream
from tests.store.model import Claim
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE, BEAT, ACCEPT, POLL, CHUNK, RETRY = 45.0, 5.0, 10.0, 2.0, 0.5, 1.0  # seconds, as by default


class Gateway:
    """One replica, started anew when it has died."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.start()

    def start(self) -> None:
        """A new process, which knows nothing."""
        self.life = Life(self.world.clock)
        self.sessions: dict[str, Session] = {}
        self.started = self.world.clock.now
        self.is_closing = False
        self._is_filling = False
        self._poll()
        self._reap()

    def accept(self, trainer: str, stream: Stream) -> None:
        """A trainer opens a stream."""
        Session(self, trainer, stream)

    def kill(self, restart_after: float) -> None:
        """SIGKILL: the kernel closes the streams."""
        if self.life.is_over:
            return
        self.world.say(self.name, "is killed")
        self.life.end()
        for session in list(self.sessions.values()):
            session.stream.to_trainer.send(END)
        self.world.clock.after(restart_after, self.start)

    def freeze(self) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self.life.freeze(self.world.chance.choice([3.0, 20.0, 60.0]))

    def close(self) -> None:
        """SIGTERM: sends its trainers elsewhere."""
        self.world.say(self.name, "goes away")
        self.is_closing = True
        for session in list(self.sessions.values()):
            session.perform(session.end.redirected("this gateway goes away"))
        self.life.after(5.0, self._let_go)

    def _let_go(self) -> None:
        for session in list(self.sessions.values()):
            session.cut(going_away())
        self.kill(self.world.chance.uniform(0.5, 10.0))

    # The database

    def ask(
        self,
        call: Callable[[], Any],
        then: Callable[[Any], None] = lambda answer: None,
        away: Callable[[], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Asks the store; `away` where it is, or again and again without it. `cancelled`: whether nobody asks now."""
        chance, life = self.world.chance, self.life
        slow = chance.random() < 0.01

        def commit() -> None:
            if cancelled():
                return
            gone = self.world.database_is_away() or (life.is_over and (slow or chance.random() < 0.5))
            answer = None if gone else self.world.asked(call)
            if gone or chance.random() < 0.005:  # committed, and yet the connection is gone before that is told
                again = away or (lambda: life.after(RETRY, lambda: self.ask(call, then, cancelled=cancelled)))
                life.after(0.01, again)
            else:
                life.after(chance.uniform(0.001, 0.02), lambda: then(answer))

        self.world.clock.after(chance.uniform(0.0, 25.0) if slow else chance.uniform(0.001, 0.02), commit)

    # Dispatch

    def wake(self) -> None:
        """A slot or a tune may have come free."""
        if not self.life.is_over:
            self._fill()

    def _poll(self) -> None:
        self._fill()
        for session in list(self.sessions.values()):
            session.look()
        self.life.after(POLL, self._poll)

    def _fill(self) -> None:
        now = self.world.clock.now
        idle = [each for each in self.sessions.values() if not each.is_over and each.end.free_slots(now) > 0]
        if self._is_filling or self.is_closing or not idle:
            return
        session = self.world.chance.choice(idle)
        self._is_filling = True
        self.ask(lambda: self.world.claim(session.end.offer()), lambda claim: self._claimed(session, claim), self._free)

    def _free(self) -> None:
        self._is_filling = False

    def _claimed(self, session: Session, claim: Claim | None) -> None:
        self._is_filling = False
        if claim is not None:
            self.life.after(self.world.chance.uniform(0.001, 0.1), lambda: session.assign(claim))
            self._fill()

    def _reap(self) -> None:
        self.ask(lambda: self.world.model.reap(LEASE), away=lambda: None)
        self.life.after(BEAT, self._reap)

    # Wake-ups

    def cancelled(self, tune_id: str) -> None:
        """A tune is."""
        for session in list(self.sessions.values()):
            session.perform(session.end.cancelled(tune_id))

    def look_at(self, trainer: str) -> None:
        """A trainer has said Hello somewhere, or is drained or resumed."""
        if (session := self.sessions.get(trainer)) is not None:
            session.look()


class Session:
    """One stream of one trainer."""

    def __init__(self, gateway: Gateway, trainer: str, stream: Stream) -> None:
        self.end: GatewayEnd
        self.stream = stream
        self.is_over = False
        self._gateway = gateway
        self._world = gateway.world
        self._trainer = trainer
        self._inbox: deque[Any] = deque()
        self._is_reading = False
        self._backlog: deque[pb.TrainerMessage] = deque()
        self._is_recording = False
        self._is_flushing = False
        self._is_storing = False  # a chunk, or a report and the chunk that goes before it
        life = gateway.life  # of this process: the next one has another
        stream.to_gateway.receive = lambda item: life.after(0.0, lambda: self._heard(item))

    # The stream

    def _heard(self, item: Any) -> None:
        if self.is_over:
            return
        if item is END:  # grpc cancels the rpc, and with it what it has under way
            self._close()
        else:
            self._inbox.append(item)
            self._read()

    def _read(self) -> None:
        """One after the other: a beat holds up what comes behind it."""
        while self._inbox and not self._is_reading and not self.is_over:
            item = self._inbox.popleft()
            if item.HasField("hello"):
                self._is_reading = True
                self._admit(item.hello)
            else:
                try:
                    self.perform(self.end.received(item, self._now()))
                except Refusal as refusal:
                    self.cut(refusal)

    def _read_on(self) -> None:
        self._is_reading = False
        self._read()

    def _say(self, message: pb.GatewayMessage) -> None:
        if not self.is_over:
            self.stream.to_trainer.send(message)

    def cut(self, refusal: Refusal) -> None:
        """Ends the stream with a status."""
        if not self.is_over:
            self.stream.to_trainer.send(refusal)
            self._close()

    def _close(self) -> None:
        self.is_over = True
        if self._gateway.sessions.get(self._trainer) is self:
            del self._gateway.sessions[self._trainer]
        if hasattr(self, "end"):
            self._gateway.ask(lambda: self._world.model.disconnect(self._trainer, self.end.session_id), away=_nothing)

    def _now(self) -> float:
        return self._world.clock.now

    # Hello

    def _admit(self, hello: pb.Hello) -> None:
        self.end = GatewayEnd(self._trainer, hello, BEAT)
        row = Hello(
            self._trainer, hello.boot_id, hello.session_id, self._gateway.name, list(hello.engines), hello.slots
        )
        self._admit_until = self._now() + ADMISSION
        self._ask(lambda: self._world.connect(row), self._connected)

    def _connected(self, is_newest: bool) -> None:
        if not is_newest:
            return self.cut(evicted(same_process=True))
        if not self._cut_older():
            return None
        self._world.wake(lambda gateway: gateway.look_at(self._trainer))
        uptime = self._now() - self._gateway.started
        return self._ask(lambda: self._world.restate(self.end, uptime), self._restated)

    def _restated(self, actions: dict[LeaseRef, HeldAction] | None) -> None:
        if actions is None:
            return self._looked(self._world.model.current(self._trainer))
        return self._take_up([request.lease for request in self.end.to_accept(actions)], actions)

    def _take_up(self, leases: list[LeaseRef], actions: dict[LeaseRef, HeldAction]) -> None:
        if leases:
            lease, *rest = leases

            def accepted(current: bool) -> None:
                self._take_up(rest, actions if current else {**actions, lease: HeldAction.ABORT})

            return self._ask(lambda: self._world.model.accept(lease), accepted)
        welcome = self.end.welcome(actions, LEASE)
        return self._ask(lambda: self._world.model.current(self._trainer), lambda row: self._admitted(welcome, row))

    def _admitted(self, welcome: pb.GatewayMessage, row: Any) -> None:
        if self.is_over or self._gateway.is_closing:
            return self.cut(going_away())
        if not self._cut_older():
            return None
        self._gateway.sessions[self._trainer] = self
        self._say(welcome)
        self._looked(row)
        self._gateway.wake()
        return self._read_on()

    def _cut_older(self) -> bool:
        """False: a newer one stands here, and this one has been cut."""
        if (other := self._gateway.sessions.get(self._trainer)) is None:
            return True
        same_process = other.end.boot_id == self.end.boot_id
        if same_process and self.end.session_id < other.end.session_id:
            self.cut(evicted(same_process=True))
            return False
        del self._gateway.sessions[self._trainer]
        other.cut(evicted(same_process=same_process))
        return True

    def _ask(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Without a database nobody is admitted, and by a slow one neither."""
        unavailable = Refusal(grpc.StatusCode.UNAVAILABLE, "DATABASE_AWAY", "it is away")

        def is_too_late() -> bool:
            if self._now() > self._admit_until:
                self.cut(unavailable)
            return self.is_over

        self._gateway.ask(call, then, lambda: self.cut(unavailable), is_too_late)

    def look(self) -> None:
        """Ends the stream where a newer Hello stands in the database; drains, resumes."""
        self._gateway.ask(lambda: self._world.model.current(self._trainer), self._looked, _nothing)

    def _looked(self, row: Any) -> None:
        if (refusal := self.end.look(row.hello.session_id, row.hello.boot_id)) is not None:
            self.cut(refusal)
        else:
            self.perform(self.end.drained(row.drain_reason))

    # What the protocol decides

    def perform(self, effects: Any) -> None:
        """Does it."""
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case protocol.Say(message):
                self._say(message)
            case protocol.Ask(request):
                self._is_reading = True
                self._gateway.ask(lambda: self._beat(request), lambda answer: self._beaten(request, answer), away=(
                    lambda: self._beaten(request, None)
                ))  # fmt: skip
            case protocol.Queue(message):
                self._backlog.append(message)
                self._record()
            case protocol.SlotFreed():
                self._gateway.wake()
            case protocol.ProgressDue():
                self._flush_soon()

    def _beat(self, request: Request) -> Answer:
        assert isinstance(request, protocol.Renew)
        model = self._world.model
        for lease in request.to_accept:
            model.accept(lease)
        renewal = model.renew(self._trainer, request.held, LEASE)
        if not model.seen(self._trainer, self.end.session_id, self.end.free_slots(self._now())):
            self.look()
        return renewal

    def _beaten(self, request: Request, answer: Answer) -> None:
        self.perform(self.end.answered(request, answer, self._now()))
        self._read_on()

    def _record(self) -> None:
        if self._backlog and not self._is_recording and not self._is_storing and not self.is_over:
            self._is_recording = self._is_storing = True
            request = self.end.request(self._backlog.popleft())
            self._gateway.ask(
                lambda: self._answer(request),
                lambda answer: self._recorded(request, answer),
                cancelled=lambda: self.is_over,
            )

    def _recorded(self, request: Request, answer: Answer) -> None:
        self._is_recording = self._is_storing = False
        self.perform(self.end.answered(request, answer, self._now()))
        self._record()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._gateway.life.after(CHUNK, self._flush)

    def _flush(self) -> None:
        """One chunk after the other: one that is overtaken would be left out as told before."""
        due = self.end.holdings.due()
        self._is_flushing = False
        if self._is_storing:
            self._flush_soon()
        elif due and not self.is_over:
            lease, buffer = next(iter(due.items()))
            chunk = buffer.take()
            assert chunk is not None
            self._is_storing = True
            self._gateway.ask(
                partial(self._world.progress, lease, chunk),
                lambda _: self._flushed(partial(buffer.note_stored, chunk)),
                lambda: self._flushed(partial(buffer.put_back, chunk)),
                lambda: self.is_over,
            )

    def _flushed(self, note: Callable[[], None]) -> None:
        self._is_storing = False
        note()
        self._flush_soon()
        self._record()

    # Assignments

    def assign(self, claim: Claim) -> None:
        """Sends a claimed tune."""
        if self.is_over or self._gateway.is_closing:
            return self._gateway.ask(lambda: self._world.model.withdraw(claim.lease, "NOT_SENT"))
        assign = pb.Assign(lease=protocol.message_of(claim.lease), engine=claim.tune.engine)
        assign.request.steps = claim.tune.steps
        assign.lease_duration.FromSeconds(int(LEASE))
        if claim.snapshot is not None:
            assign.snapshot.step = claim.snapshot.step
        self._say(pb.GatewayMessage(assign=assign))
        self.end.assigned(claim.lease)
        return self._gateway.life.after(ACCEPT, lambda: self._overdue(claim.lease))

    def _overdue(self, lease: LeaseRef) -> None:
        if (request := self.end.overdue(lease, self._now())) is not None:
            self._gateway.ask(
                lambda: self._world.model.withdraw(lease, request.reason),
                lambda answer: self.perform(self.end.answered(request, answer, self._now())),
            )

    # What the store is asked

    def _answer(self, request: Request) -> Answer:
        model = self._world.model
        match request:
            case protocol.Accept(lease):
                return model.accept(lease)
            case protocol.Withdraw(lease, reason):
                return model.withdraw(lease, reason)
            case protocol.Sign(lease, wanted):
                urls = pb.Urls(request_id=wanted.request_id, urls=[pb.SignedUrl(url="http://objects")])
                return urls if model.is_current(lease) is not None else None
            case Record(lease):
                if (
                    request.follows_progress
                    and (buffer := self.end.holdings.due().get(lease))
                    and (chunk := buffer.take())
                ):
                    self._world.progress(lease, chunk)
                    buffer.note_stored(chunk)
                return self._world.witness.recorded(request, lambda: self._report(lease, request))
        raise AssertionError(request)

    def _report(self, lease: LeaseRef, request: Record) -> Outcome:
        model, message = self._world.model, request.message
        report = getattr(message, request.arm)
        match request.arm:
            case "event":
                return model.record_event(lease, report.report_seq, "warning", {})
            case "snapshot_ready":
                snapshot = Snapshot(self._object(lease, report.object), report.step, "0" * 64, 1)
                return model.record_snapshot(lease, report.report_seq, snapshot)[0]
            case "finished":
                result = LoraResult(self._object(lease, report.lora), "0" * 64, 1, report.step, 0.0, 1)
                return model.finish(lease, report.report_seq, result)[0]
            case "failed":
                return model.fail(lease, report.report_seq, report.reason, retryable=True, crashed=report.crashed)
            case "cancel_observed":
                return model.observe_cancel(lease, report.report_seq, report.step)
        return model.give_back(lease, report.report_seq, report.step)

    def _object(self, lease: LeaseRef, uploaded: pb.UploadedObject) -> str:
        self._world.witness.announced(lease, uploaded.name)
        return f"{lease.tune_id}/{lease.epoch}/{uploaded.name}"


def _nothing() -> None:
    """The next beat, or the next poll, finds it."""

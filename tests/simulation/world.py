"""A whole service in virtual time: trainers, two gateways, a database, and faults by seed.

    World(seed).run()          one random.Random decides everything: the same seed gives the same run

Where a promise is broken, Broken tells the seed, and all that has happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gateway.progress import Chunk
from gateway.protocol import GatewayEnd
from store.attempts import HeldAction, LeaseRef, Offer
from store.errors import StateForbids
from store.trainers import Hello
from tests.simulation.clock import Clock
from tests.simulation.gateway import LEASE, Gateway
from tests.simulation.network import Stream
from tests.simulation.trainer import Process, Trainer
from tests.simulation.witness import Broken, Witness
from tests.store.model import Claim, Model

UNREST = 90.0  # seconds of faults
PATIENCE = 900.0  # seconds after which all must have ended
TUNES = 4
FAULTS = (
    "kill_trainer",
    "crash_engine",
    "freeze_trainer",
    "leave",
    "kill_gateway",
    "freeze_gateway",
    "close_gateway",
    "cut_stream",
    "block_to_gateway",
    "block_to_trainer",
    "database_away",
    "cancel",
    "drain",
)


class World:
    """One run."""

    def __init__(self, seed: int, faults: Sequence[str] = FAULTS) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.model = Model()
        self.witness = Witness(self)
        self.objects: set[tuple[str, int, str]] = set()
        self.trace: list[str] = []
        self.happened: list[str] = []  # faults
        self._faults = faults
        self._away_until = 0.0
        self._streams: dict[str, Stream] = {}  # the newest of each trainer
        self.gateways = [Gateway(self, name) for name in ("gateway-1", "gateway-2")]
        self.trainers: list[Trainer] = []
        for number in (1, 2, 3):
            self.trainers.append(Trainer(self, f"trainer-{number}", slots=self.chance.choice([1, 1, 2])))

    def run(self) -> None:
        """From the first tune to the last end.

        Raises:
            Broken: A promise was not kept.
        """
        try:
            for _ in range(TUNES):
                self.clock.after(self.chance.uniform(0.0, UNREST / 2), self._submit)
            self._go_wrong()
            self.clock.run(UNREST)
            self.say("-----", "no more faults")
            self.clock.run(UNREST + PATIENCE, self._is_done)
            self.witness.conclude()
        except Exception as fault:
            trace = "\n".join(self.trace)
            raise Broken(f"seed {self.seed}: {fault}\n{trace}") from fault

    # What hosts do with one another

    def dial(self, trainer: str) -> Stream | None:
        """A stream to any gateway that listens."""
        gateway = self.chance.choice(self.gateways)
        if gateway.life.is_over or gateway.is_closing:
            return None
        stream = self._streams[trainer] = Stream(self.clock, self.chance)
        gateway.accept(trainer, stream)
        return stream

    def wake(self, tell: Callable[[Gateway], None]) -> None:
        """A wake-up, which may be lost on its way to each gateway."""
        for gateway in self.gateways:
            if self.chance.random() < 0.8:
                gateway.life.after(self.chance.uniform(0.001, 0.1), partial(tell, gateway))

    def database_is_away(self) -> bool:
        """Whether nobody can reach it now."""
        return self.clock.now < self._away_until

    def asked(self, call: Callable[[], Any]) -> Any:
        """The database does this now."""
        self.model.advance(self.clock.now - self.model.now)
        return call()

    def connect(self, hello: Hello) -> bool:
        """False: a newer stream of the same process stands there, and this Hello has been long under way."""
        try:
            self.model.connect(hello)
        except StateForbids:
            return False
        return True

    def restate(self, end: GatewayEnd, uptime: float) -> dict[LeaseRef, HeldAction] | None:
        """None: the trainer has said a newer Hello."""
        try:
            return self.model.restate(end.trainer_id, end.restated(), LEASE, uptime, end.session_id)
        except StateForbids:
            return None

    def claim(self, offer: Offer) -> Claim | None:
        """One of the database's answers, watched."""
        claim = self.model.claim(offer, LEASE)
        if claim is not None:
            self.say("database", f"gives {claim.tune.id} to {offer.trainer_id}, epoch {claim.lease.epoch}")
            self.witness.claimed(claim)
        return claim

    def progress(self, lease: LeaseRef, chunk: Chunk) -> bool:
        """A chunk is stored."""
        return self.model.record_progress(lease, chunk.phase, chunk.step, chunk.metrics)

    def say(self, who: str, text: str) -> None:
        """To the trace."""
        self.trace.append(f"{self.clock.now:8.3f} {who:12} {text}")

    # Callers

    def _submit(self) -> None:
        self.model.advance(self.clock.now - self.model.now)
        tune = self.model.submit(steps=self.chance.randint(5, 16)).tune
        self.say("caller", f"wants {tune.id}")
        self.wake(Gateway.wake)

    def _is_done(self) -> bool:
        return all(
            tune.state.public in ("succeeded", "failed", "cancelled") for tune in self.model.tunes.values()
        ) and all(
            trainer.process is not None
            and not trainer.disk
            and len(trainer.process.end.leases) == 0
            and not trainer.process.end.is_drained
            for trainer in self.trainers
        )

    # Faults

    def _go_wrong(self) -> None:
        """The next fault, and the one after it."""
        if not self._faults:
            return
        self.clock.after(self.chance.expovariate(1 / 5.0), self._one_goes_wrong)

    def _one_goes_wrong(self) -> None:
        if self.clock.now > UNREST:
            return
        fault = self.chance.choice(self._faults)
        self.happened.append(fault)
        self.say("fault", fault)
        getattr(self, f"_{fault}")()
        self._go_wrong()

    def _kill_trainer(self) -> None:
        self.chance.choice(self.trainers).kill(self.chance.choice([1.0, 10.0, 70.0]))

    def _crash_engine(self) -> None:
        self._process(Process.crash_engine)

    def _freeze_trainer(self) -> None:
        self._process(Process.freeze)

    def _leave(self) -> None:
        self._process(Process.leave)

    def _process(self, act: Callable[[Process], None]) -> None:
        process = self.chance.choice(self.trainers).process
        if process is not None:
            act(process)

    def _kill_gateway(self) -> None:
        self.chance.choice(self.gateways).kill(self.chance.choice([0.5, 5.0, 40.0]))

    def _freeze_gateway(self) -> None:
        self.chance.choice(self.gateways).freeze()

    def _close_gateway(self) -> None:
        gateway = self.chance.choice(self.gateways)
        if not gateway.life.is_over:
            gateway.close()

    def _stream(self) -> Stream:
        return self._streams[self.chance.choice(sorted(self._streams))]

    def _cut_stream(self) -> None:
        self._stream().cut()

    def _block_to_gateway(self) -> None:
        self._stream().to_gateway.block(self.chance.uniform(1.0, 70.0))

    def _block_to_trainer(self) -> None:
        self._stream().to_trainer.block(self.chance.uniform(1.0, 70.0))

    def _database_away(self) -> None:
        self._away_until = self.clock.now + self.chance.choice([0.5, 5.0, 30.0, 60.0])

    def _cancel(self) -> None:
        if not self.model.tunes or self.chance.random() < 0.5:
            return
        self.model.advance(self.clock.now - self.model.now)
        tune = self.chance.choice(list(self.model.tunes.values()))
        self.say("caller", f"cancels {tune.id}")
        self.model.cancel(tune.tenant_id, tune.id)
        self.wake(lambda gateway: gateway.cancelled(tune.id))

    def _drain(self) -> None:
        """For a while: the last word is always that it is to work."""
        trainer = self.chance.choice(self.trainers).name
        self._want(trainer, "maintenance")
        self.clock.after(self.chance.uniform(1.0, 40.0), lambda: self._want(trainer, None))

    def _want(self, trainer: str, drain_reason: str | None) -> None:
        self.say("operator", f"drains {trainer}" if drain_reason else f"resumes {trainer}")
        self.model.want(trainer, drain_reason)
        self.wake(lambda gateway: gateway.look_at(trainer))

"""Streams between trainers and gateways: in order each way, late, cut, or open one way only.

A stream ends where an end is told, or where keepalive finds it dead. What one side has sent before it closed still
arrives, however late: so an older stream's messages come beside a newer one's. Left out is one thing: the Hello of a
process that has died, which a gateway acts on only where no word of that death comes through for seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.simulation.clock import Clock

KEEPALIVE = 30.0  # seconds until a side finds that nothing comes through any more
END = object()  # sent as the last item of a direction


class Direction:
    """One way of a stream."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self.receive: Callable[[Any], None] = lambda item: None
        self._clock = clock
        self._chance = chance
        self._last = 0.0
        self._blocked_until = 0.0
        self._is_cut = False

    def send(self, item: Any) -> None:
        """Puts an item under way."""
        latency = self._chance.uniform(0.001, 0.05)
        if self._chance.random() < 0.01:
            latency += self._chance.uniform(0.0, 12.0)
        if item is END:
            latency += self._chance.uniform(0.0, 0.5)  # what came before it is acted on
        self._last = max(self._clock.now + latency, self._last)
        self._clock.after(self._last - self._clock.now, lambda: self._deliver(item))

    def block(self, seconds: float) -> None:
        """Nothing comes through for so long; then all does."""
        self._blocked_until = max(self._blocked_until, self._clock.now + seconds)

    def cut(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._is_cut = True

    def close_at_once(self) -> None:
        """An end that overtakes everything."""
        if not self._is_cut:
            self._is_cut = True
            self.receive(END)

    def _deliver(self, item: Any) -> None:
        if self._is_cut:
            return
        if (wait := self._blocked_until - self._clock.now) > 0:
            self._clock.after(wait, lambda: self._deliver(item))
        else:
            self.receive(item)


class Stream:
    """Both ways."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self.to_gateway = Direction(clock, chance)
        self.to_trainer = Direction(clock, chance)
        self._clock = clock

    def cut(self) -> None:
        """The cable is out. Each side is told only by its keepalive."""
        gateway, trainer = self.to_gateway.receive, self.to_trainer.receive
        self.to_gateway.cut()
        self.to_trainer.cut()
        self._clock.after(KEEPALIVE, lambda: gateway(END))
        self._clock.after(KEEPALIVE, lambda: trainer(END))

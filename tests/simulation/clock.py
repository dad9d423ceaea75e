"""Virtual time: a queue of what is to happen, and when. Everything in a simulation waits here and nowhere else, so a
minute takes a millisecond, and a seed always gives the same one.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable


class Clock:
    """Seconds since the simulation began."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()  # what is due at one time happens in the order in which it was asked for
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Does it then."""
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), act))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Lets time pass until then, or until `done`."""
        while self._due and self._due[0][0] <= until and not done():
            self.now, _, act = heapq.heappop(self._due)
            act()
        if not done():
            self.now = max(self.now, until)


class Life:
    """One process: what it has still to do ends with it."""

    def __init__(self, clock: Clock) -> None:
        self.is_over = False
        self._clock = clock
        self._frozen_until = 0.0
        self._deferred: deque[Callable[[], None]] = deque()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Does it then, unless the process has ended; when it is no longer frozen."""
        self._clock.after(seconds, lambda: self._live(act))

    def end(self) -> None:
        """SIGKILL."""
        self.is_over = True

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT then: all that was due meanwhile happens at once."""
        self._frozen_until = max(self._frozen_until, self._clock.now + seconds)
        self._clock.after(seconds, self._thaw)

    def _live(self, act: Callable[[], None]) -> None:
        if self._clock.now < self._frozen_until:
            self._deferred.append(act)
        elif not self.is_over:
            act()

    def _thaw(self) -> None:
        while self._deferred and not self.is_over and self._clock.now >= self._frozen_until:
            self._deferred.popleft()()

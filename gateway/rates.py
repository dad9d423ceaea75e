"""How often each of many may do something: token buckets. Called by quotas and credentials; knows no tenant and no RPC.

A bucket holds `rate` x BURST tokens and gets `rate` a second. It is kept as one number, the time at which it will be
full again (the generic cell rate algorithm): a bucket that is full needs no memory at all. Such a time says how many
tokens are gone by one rate only, so the rate is kept beside it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

BURST = 10.0  # seconds of the rate that may be used at once by who was quiet for so long
MOST = 10_000  # buckets; beyond it the one unused for longest counts as full again


class Buckets:
    """A bucket for each name, all on one clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Name -> when its bucket is full again, and by which rate.
        self._full_at: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, rate: float) -> float:
        """Seconds until the name's bucket has a token; 0 where it has one.

        Args:
            name: Whose bucket.
            rate: Tokens a second; it may change from call to call.
        """
        return max(self._to_fill(name, rate) + 1 / rate - _room(rate), 0.0)

    def take(self, name: str, rate: float) -> float:
        """Takes a token and answers 0; answers as `wait` does, and takes none, where there is none."""
        wait = self.wait(name, rate)
        if wait > 0:
            return wait
        self._full_at[name] = (self._clock() + self._to_fill(name, rate) + 1 / rate, rate)
        self._full_at.move_to_end(name)
        if len(self._full_at) > MOST:
            self._full_at.popitem(last=False)
        return 0.0

    def _to_fill(self, name: str, rate: float) -> float:
        """Seconds until the name's bucket is full."""
        now = self._clock()
        full_at, known = self._full_at.get(name, (now, rate))
        seconds = max(full_at - now, 0.0)
        if known == rate:
            return seconds
        # Tokens that were taken stay taken under another rate, and no bucket lacks more than it holds.
        seconds = min(seconds * known / rate, _room(rate))
        self._full_at[name] = (now + seconds, rate)
        return seconds


def _room(rate: float) -> float:
    """What a bucket holds, seconds of its rate; below one token in BURST seconds it has room for one all the same."""
    return max(BURST, 1 / rate)

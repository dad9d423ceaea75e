"""What one tenant may ask of this gateway: requests a second, and streams that are open at once. Called by the
interceptors, once a call; knows no rpc by name.

Each gateway counts for itself: a tenant that speaks to N of them has N times as much. Trainers, health checks and
signed URLs are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from gateway.rates import Buckets
from gateway.status import Refusal
from store.keys import Caller
from store.tenants import LEAST_RATE, MOST_RATE

STREAM_RETRY = 5.0  # seconds after which who has too many streams may try again; a guess


class Quotas:
    """What all tenants have used.

    Args:
        requests_per_second: What a tenant has whose row says nothing. None: as many as it likes.
        streams: Open at once, a tenant. None: as many as it likes.
        buckets: Made where none are given.
        refused: Told of every refusal.
    """

    def __init__(
        self,
        requests_per_second: float | None = None,
        streams: int | None = None,
        buckets: Buckets | None = None,
        refused: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self._requests_per_second = requests_per_second
        self._streams = streams
        self._buckets = buckets or Buckets()
        self._refused = refused
        #: Tenant -> its open streams; no tenant with none.
        self._open: Counter[str] = Counter()

    def charge(self, caller: Caller) -> None:
        """Counts one call. A stream is one, however long it lasts.

        Raises:
            Refusal: The tenant calls too often.
        """
        rate = caller.request_rate or self._requests_per_second
        if rate is None:
            return
        rate = min(max(rate, LEAST_RATE), MOST_RATE)  # older rows may hold what nobody may set any more
        wait = self._buckets.take(caller.tenant_id, rate)
        if wait > 0:
            self._refused("requests")
            sentence = f"Your tenant may make {rate:g} requests a second, and has made more."
            raise rate_limited(sentence, wait)

    @contextmanager
    def stream(self, caller: Caller) -> Iterator[None]:
        """Around a stream while it is open.

        Raises:
            Refusal: The tenant has as many as it may have.
        """
        tenant = caller.tenant_id
        if self._streams is not None and self._open[tenant] >= self._streams:
            self._refused("streams")
            sentence = f"Your tenant has {self._streams} streams open, as many as it may have at once."
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", sentence, retry_after_seconds=STREAM_RETRY
            )
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]


def rate_limited(sentence: str, seconds: float) -> Refusal:
    """The refusal of who calls too often, until so many seconds have passed."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", sentence, retry_after_seconds=seconds)

"""What every session of one gateway works with. Made by the dispatcher; the settings come from the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gateway.results import Results
from gateway.stream_metrics import StreamMetrics
from store.database import Database
from store.moves import POISON_LIMIT
from store.objects import Objects


@dataclass(frozen=True)
class StreamSettings:
    """What the operator says about streams. Seconds where nothing else is said."""

    gateway_id: str
    """This replica's name."""
    lease_seconds: float = 45.0
    """Length of a lease."""
    heartbeat_seconds: float = 5.0
    """Between two beats."""
    accept_seconds: float = 10.0
    """Until an assignment that is not accepted is withdrawn."""
    poll_seconds: float = 2.0
    """Between two looks into the queue without a wake-up."""
    reap_seconds: float = 5.0
    """At most so long between two rounds of the reaper."""
    max_attempts: int = POISON_LIMIT
    """Attempts that may end badly without a newer snapshot between them."""


@dataclass(frozen=True)
class Desk:
    """Shared by all sessions of a gateway."""

    database: Database
    objects: Objects
    results: Results
    settings: StreamSettings
    metrics: StreamMetrics
    slot_freed: Callable[[], None]
    """Wakes the dispatcher."""
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    """Runs something that outlives the stream."""
    started: float = field(default_factory=time.monotonic)
    """When this gateway began; monotonic."""

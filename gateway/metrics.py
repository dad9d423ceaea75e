"""What Prometheus reads: one registry, the gateway's own series, and the address that serves them. Built by the server,
which hands its `rpc`, `http` and `ended` to whoever measures. The stream's series are in stream_metrics.py.

A scrape never waits for the database: what is counted there is read every few seconds into a snapshot, and a scrape
gets the newest one with its time. All gateways tell the same numbers about it: take the max over them, not the sum.
Ended tunes only grow, so they are not counted there: each gateway counts its own commits, and their sum is right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Thread
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, Info, ProcessCollector
from prometheus_client import start_http_server as start_scrape_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.config import Address, ConfigError
from store import trainers, tunes
from store.database import Database
from store.states import TERMINAL
from store.tunes import QueueStats
from store.webhooks import messages
from store.webhooks.messages import OutboxStats

ENGINES = 64  # that get series of their own: a tenant can invent engines for its checkpoints
OTHER = "other"  # stands for all engines that have none
PERIOD = 5.0  # seconds between two readings of the database
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What the database says, at one time."""

    queue: QueueStats
    #: Of all trainers with a stream to any gateway.
    slots: int
    #: Of these, without a tune.
    free_slots: int
    #: Webhooks that are still to be delivered.
    outbox: OutboxStats = field(default_factory=OutboxStats)


async def read_snapshot(database: Database) -> Snapshot:
    """Counts."""
    connected = await trainers.list_connected(database)
    return Snapshot(
        await tunes.queue_stats(database),
        sum(trainer.slots for trainer in connected),
        sum(trainer.free_slots for trainer in connected),
        await messages.stats(database),
    )


class Metrics:
    """The registry and what is written into it. Its methods may be called from the event loop and are cheap."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("tunesmith_build", "The gateway's build.", registry=self.registry).info({"version": version})
        self._rpcs = Histogram(
            "tunesmith_rpc_duration_seconds",
            "Time from a call's arrival to its end, streams included.",
            ["method", "code"],
            buckets=LATENCY,
            registry=self.registry,
        )
        self._requests = Histogram(
            "tunesmith_http_request_duration_seconds",
            "Time from an HTTP request's arrival to its answer's end.",
            ["route", "method", "status"],
            buckets=LATENCY,
            registry=self.registry,
        )
        self._pictures = Counter(
            "tunesmith_pictures_judged",
            "Uploads judged, by the reason of their refusal; ACCEPTED for the good ones.",
            ["reason"],
            registry=self.registry,
        )
        self._fetches = Counter(
            "tunesmith_fetches_ended",
            "Fetches for callers that have ended, by the reason why there are no bytes; FETCHED where there are.",
            ["reason"],
            registry=self.registry,
        )
        self._limited = Counter(
            "tunesmith_calls_limited",
            "Calls refused since their tenant had too many requests a second or streams, or uploads no memory left.",
            ["limit"],
            registry=self.registry,
        )
        for limit in ("requests", "streams", "uploads"):
            self._limited.labels(limit)
        self._ended = Counter(
            "tunesmith_tunes_ended",
            "Tunes that this gateway has ended, by final state and engine: sum over gateways.",
            ["state", "engine"],
            registry=self.registry,
        )
        self._snapshot: Snapshot | None = None  # written by follow, read by a scrape's thread
        self._read_at = 0.0  # seconds since the epoch; the same
        # Engines that tunes may have, or have had: their series go to 0 and do not end, which an autoscaler would take
        # for a fault.
        self._engines: frozenset[str] = frozenset()  # written by admit, read by a scrape's thread
        self.registry.register(_Queue(self))

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """One call has ended."""
        self._rpcs.labels(method, code).observe(seconds)

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request has been answered. `route` is the template, so that ids make no series."""
        self._requests.labels(route, method, str(status)).observe(seconds)

    def judged(self, reason: str) -> None:
        """One upload was judged; no reason: accepted."""
        self._pictures.labels(reason or "ACCEPTED").inc()

    def fetched(self, reason: str) -> None:
        """One fetch has ended; no reason: its bytes are there, whatever the verdict on them."""
        self._fetches.labels(reason or "FETCHED").inc()

    def limited(self, limit: str) -> None:
        """One call was refused for a limit: `requests`, `streams` or `uploads`."""
        self._limited.labels(limit).inc()

    def ended(self, state: str, engine: str) -> None:
        """A commit of this gateway has ended a tune."""
        self.admit([engine])
        self._ended.labels(state, engine if engine in self._engines else OTHER).inc()

    async def follow(self, read: Callable[[], Awaitable[Snapshot]]) -> None:
        """Reads the database again and again until cancelled. Where that fails, the last snapshot stays."""
        while True:
            try:
                snapshot = await read()
            except Exception as exc:  # a metric is no reason to end the gateway, whatever the store throws
                log.warning(f"The queue could not be counted: {exc}", action="queue_count_failed")
            else:
                self.admit(snapshot.queue.queued)
                self._snapshot, self._read_at = snapshot, time.time()
            await asyncio.sleep(PERIOD)

    def serve(self, address: Address) -> ScrapeServer:
        """Starts to answer scrapes, in a thread of its own.

        Raises:
            ConfigError: It cannot listen there.
        """
        try:
            return ScrapeServer(*start_scrape_server(address.port, address.host, self.registry))
        except OSError as exc:
            raise ConfigError(f"TUNESMITH_METRICS={address}: {exc.strerror}") from exc

    def families(self) -> Iterator[GaugeMetricFamily]:
        """The newest snapshot as series."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        queue = snapshot.queue
        tables: list[tuple[str, str, str, Mapping[str, float]]] = [
            ("tunesmith_tunes", "Tunes that have not ended, by state.", "state", queue.states),
            (
                "tunesmith_queue_tunes",
                "Tunes that wait for a trainer, by engine.",
                "engine",
                self._by_engine(queue.queued, sum),
            ),
            (
                "tunesmith_queue_oldest_age_seconds",
                "How long the oldest waiting tune of an engine has waited.",
                "engine",
                self._by_engine(queue.oldest_seconds, max),
            ),
            (
                "tunesmith_slots",
                "Slots of the trainers that are connected to any gateway.",
                "state",
                {"free": snapshot.free_slots, "taken": snapshot.slots - snapshot.free_slots},
            ),
        ]
        for name, text, label, values in tables:
            family = GaugeMetricFamily(name, text, labels=[label])
            for value, number in sorted(values.items()):
                family.add_metric([value], number)
            yield family
        text = "Webhooks that wait for their first or next try; without those of disabled endpoints."
        yield GaugeMetricFamily("tunesmith_webhooks_pending", text, value=snapshot.outbox.pending)
        text = "How long the oldest of them has waited."
        yield GaugeMetricFamily("tunesmith_webhooks_oldest_age_seconds", text, value=snapshot.outbox.oldest_seconds)
        text = "When the database was last counted, seconds since the epoch."
        yield GaugeMetricFamily("tunesmith_queue_read_timestamp_seconds", text, value=self._read_at)

    def admit(self, engines: Iterable[str]) -> None:
        """Gives engines series of their own while there is room."""
        new = sorted(frozenset(engines) - self._engines)
        room = ENGINES - len(self._engines)
        self._engines |= frozenset(new[:room])
        for engine in [*new[:room], OTHER] if new[room:] else new:
            for state in TERMINAL:
                self._ended.labels(state, engine)  # begins at 0: a rate sees no series' first value

    def _by_engine(self, values: Mapping[str, float], together: Callable[[list[float]], float]) -> dict[str, float]:
        """A number for each engine that has a series, and one for all others."""
        engines = self._engines
        shown = dict.fromkeys(engines, 0.0) | {name: value for name, value in values.items() if name in engines}
        others = [value for name, value in values.items() if name not in engines]
        return shown | ({OTHER: together(others)} if others else {})


class _Queue(Collector):
    """Hands a scrape the newest snapshot."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry, in the scrape's thread."""
        return self._metrics.families()


class ScrapeServer:
    """The thread that answers scrapes."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread
        #: The port that was bound.
        self.port = server.server_port

    def close(self) -> None:
        """Ends it; waits for the scrape that is being answered."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

"""What the stream tells Prometheus: dispatch, reports, connected trainers. Built by the server on the gateway's
registry; written by the dispatcher and its sessions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: From a free slot that was waiting to a night's queue, seconds.
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0, 36000.0)


class StreamMetrics:
    """All series of the stream's gateway end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.trainers = Gauge(
            "tunesmith_trainers_connected", "Trainers with a stream to this gateway.", registry=registry
        )
        self.drained = Gauge(
            "tunesmith_trainers_drained", "Of these, trainers that the operator wants empty.", registry=registry
        )
        self.wait = Histogram(
            "tunesmith_dispatch_wait_seconds",
            "From a tune's creation to its first assignment.",
            buckets=WAITS,
            registry=registry,
        )
        self.claim = Histogram(
            "tunesmith_dispatch_claim_seconds", "Time of one claim, fruitless ones included.", registry=registry
        )
        self._assignments = Counter(
            "tunesmith_assignments",
            "Assignments by what became of them: sent, accepted, rejected, withdrawn.",
            ["outcome"],
            registry=registry,
        )
        self._reports = Counter(
            "tunesmith_reports", "Trainers' reports, by kind and outcome.", ["kind", "outcome"], registry=registry
        )

    def assignment(self, outcome: str) -> None:
        """An assignment was sent, accepted, rejected or withdrawn."""
        self._assignments.labels(outcome).inc()

    def report(self, kind: str, outcome: str) -> None:
        """A report was judged."""
        self._reports.labels(kind, outcome.lower()).inc()

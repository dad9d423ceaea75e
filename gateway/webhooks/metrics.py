"""What the delivery of webhooks tells Prometheus. Built by the server on the gateway's registry, written by delivery;
how much waits is read from the database with the queue: see gateway/metrics.py."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from store.webhooks.deliveries import Fate

#: Up to the time after which a try is given up, seconds.
DURATIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)


class WebhookMetrics:
    """All series of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tries = Counter(
            "tunesmith_webhook_tries",
            "Tries to deliver a webhook, by what became of it: delivered, retried, given_up, or stale where another"
            " gateway had taken it over meanwhile.",
            ["outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "tunesmith_webhook_seconds", "Time of one try, failed ones included.", buckets=DURATIONS, registry=registry
        )
        self._disabled = Counter(
            "tunesmith_webhook_endpoints_disabled",
            "Endpoints that were disabled because they are gone or have failed for days.",
            registry=registry,
        )
        for fate in Fate:
            self._tries.labels(fate.value)  # begins at 0: a rate sees no series' first value

    def tried(self, fate: Fate, seconds: float) -> None:
        """One try was recorded."""
        self._tries.labels(fate.value).inc()
        self._seconds.observe(seconds)

    def disabled(self) -> None:
        """An endpoint was disabled with it."""
        self._disabled.inc()

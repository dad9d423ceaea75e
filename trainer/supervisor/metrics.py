"""What a trainer tells Prometheus, on an address of its own. Written by the supervisor and its attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from trainer import pipe

#: From a toy model on a GPU to SDXL on a CPU, seconds.
BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """All series of one trainer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._step_seconds = Histogram(
            "tunesmith_trainer_step_seconds",
            "Time of an optimizer step: the mean over steps read together, about a fifth of a second's.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._steps = Counter("tunesmith_trainer_steps", "Optimizer steps made.", registry=self.registry)
        self._tunes = Counter("tunesmith_trainer_tunes", "Attempts ended, by how.", ["outcome"], registry=self.registry)
        self.held = Gauge("tunesmith_trainer_tunes_held", "Attempts held.", registry=self.registry)
        self.connected = Gauge(
            "tunesmith_trainer_connected", "1 while a gateway has welcomed this trainer.", registry=self.registry
        )
        self.engine_ready = Gauge(
            "tunesmith_trainer_engine_ready", "1 while the engine process takes work.", registry=self.registry
        )
        self.engine_memory = Gauge(
            "tunesmith_trainer_engine_memory_bytes",
            "Device memory that the weights of resident base models take; nothing of what training adds.",
            registry=self.registry,
        )
        self._process_memory = Gauge(
            "tunesmith_trainer_engine_process_memory_bytes",
            "Memory that the engine process takes, all told: what torch has reserved of a GPU, else what is resident.",
            registry=self.registry,
        )
        self._process_memory_peak = Gauge(
            "tunesmith_trainer_engine_process_memory_peak_bytes",
            "The most that the engine process has taken since it began, measured in the same way.",
            registry=self.registry,
        )
        self.engine_restarts = Gauge(
            "tunesmith_trainer_engine_restarts", "Engine processes that died and were replaced.", registry=self.registry
        )
        self._base_loads = Counter(
            "tunesmith_trainer_base_loads",
            "Times a base model was loaded; a warm one is not.",
            registry=self.registry,
        )
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def startup(self, host: str, port: int) -> str:
        """Serves /metrics; returns its URL."""
        self._server, self._thread = start_http_server(port, host, self.registry)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._server.server_port}/metrics"

    def shutdown(self) -> None:
        """Ends the server; waits for its thread."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def show_memory(self, taken: Callable[[], pipe.Memory]) -> None:
        """From now on each scrape asks what the engine process takes."""
        self._process_memory.set_function(lambda: taken().now_bytes)
        self._process_memory_peak.set_function(lambda: taken().peak_bytes)

    def stepped(self, steps: Iterable[pipe.StepLine]) -> None:
        """Steps were made."""
        for step in steps:
            self._steps.inc()
            self._step_seconds.observe(step.seconds)

    def entered(self, phase: str) -> None:
        """A tune's phase changed. The engine says "loading" only where no warm base serves."""
        if phase == "loading":
            self._base_loads.inc()

    def ended(self, outcome: str) -> None:
        """An attempt has ended: the name of its terminal report, or "abandoned"."""
        self._tunes.labels(outcome).inc()

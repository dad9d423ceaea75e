"""The trainer's parent process: startup, serve, shutdown. Called by trainer.__main__; all is wired here.

    Connection ── Session ── Workbench ── Attempt ── Engine (child process)

Knows no message: what they mean is the workbench's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import structlog

from trainer.durable import whole
from trainer.supervisor import child
from trainer.supervisor.child import Engine
from trainer.supervisor.config import Settings, split_address
from trainer.supervisor.connection import Connection
from trainer.supervisor.metrics import Metrics
from trainer.supervisor.session import Session
from trainer.supervisor.workbench import Workbench

log = structlog.get_logger()

HTTP_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds without a byte, not of the whole


class CannotStart(Exception):
    """A setting cannot be followed on this machine; the message names it, its value and why."""


class Supervisor:
    """One trainer process. All its state belongs to the event loop.

    Args:
        settings: What the operator said.
        command: Of the engine child; tests put a script there.
    """

    def __init__(self, settings: Settings, command: Sequence[str] = child.COMMAND) -> None:
        self.ready = asyncio.Event()  # set once a gateway has welcomed us, and the ready file says so
        self.metrics = Metrics()
        self.engine = Engine(self._engine_changed, _engine_environment(settings), settings.step_deadline, command)
        self._settings = settings
        self._client = httpx.AsyncClient(
            timeout=HTTP_TIMEOUT, follow_redirects=True, verify=authorities(settings.tls_ca)
        )
        self.metrics.show_memory(lambda: self.engine.takes)
        self.workbench = Workbench(settings, self._client, self.engine, self.metrics)
        self._connection = Connection(
            settings,
            session=lambda: Session(self.workbench, settings.trainer_token),
            holds_work=lambda: len(self.workbench.leases) > 0,
            lease_seconds=lambda: self.workbench.leases.length,
        )
        self._engine_seen = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then gives back what it holds, within the grace time.

        Raises:
            Refused, DuplicateTrainer: see Connection.
            CannotStart: the data folder or an address cannot be had.
        """
        with _locked(self._settings.data):
            self._startup()
            try:
                await self._serve(stop)
            finally:
                await self._client.aclose()
                self.metrics.shutdown()

    def _startup(self) -> None:
        """Sweeps the work of an earlier process, takes up its results, serves /metrics."""
        shutil.rmtree(self._settings.data / "work", ignore_errors=True)
        (self._settings.data / "work").mkdir()
        self.workbench.startup()
        try:
            self.metrics_url = self.metrics.startup(*split_address(self._settings.metrics))
        except OSError as exc:
            raise CannotStart(f"TUNESMITH_METRICS={self._settings.metrics}: {exc.strerror}") from exc
        log.info("The trainer starts", trainer_id=self._settings.trainer_id, metrics=self.metrics_url)

    async def _serve(self, stop: asyncio.Event) -> None:
        engine = asyncio.create_task(self.engine.run())
        connection = asyncio.create_task(self._connect())
        stopping = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(self._say_ready())
        try:
            await asyncio.wait({engine, connection, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await self._drain(connection)
        finally:
            await self._shutdown(ready, stopping, connection, engine)
        for task in (connection, engine):
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                raise fault

    async def _connect(self) -> None:
        await self._engine_seen.wait()  # Hello says what the engine can do
        await self._connection.run()

    async def _drain(self, connection: asyncio.Task[None]) -> None:
        """Waits until every tune is given back and the stream has ended, or until the grace time has."""
        log.info("The trainer leaves", held=len(self.workbench.leases), grace=self._settings.grace)
        self._connection.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace):
                if await self.workbench.drain():
                    await asyncio.wait({connection})

    async def _shutdown(self, *tasks: asyncio.Task[object]) -> None:
        """Ends everything that still runs; waits for the engine process too, for the GPU is its own until then."""
        await self.workbench.shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_ready(self) -> None:
        """Writes the ready file once a gateway has welcomed us."""
        await self.workbench.welcomed_once.wait()
        if (path := self._settings.ready_file) is not None:
            await asyncio.to_thread(_write_whole, path, json.dumps({"metrics": self.metrics_url}))
        self.ready.set()

    def _engine_changed(self) -> None:
        if self.engine.ready is not None:
            self._engine_seen.set()
        self.metrics.engine_ready.set(self.engine.ready is not None)
        self.metrics.engine_memory.set(self.engine.memory_bytes)
        self.metrics.engine_restarts.set(self.engine.restarts)
        self.workbench.beat_soon()


def authorities(tls_ca: Path | None) -> ssl.SSLContext:
    """Whom certificates of object stores and gateways may be signed by: the system's authorities, and this one."""
    context = ssl.create_default_context()
    if tls_ca is not None:
        context.load_verify_locations(tls_ca)
    return context


def _engine_environment(settings: Settings) -> dict[str, str]:
    """The engine's environment: ours, without the token, which is no business of the libraries in there."""
    mine = {key: value for key, value in os.environ.items() if key != "TUNESMITH_TRAINER_TOKEN"}
    mine |= {"TUNESMITH_DEVICE": settings.device, "TUNESMITH_THREADS": str(settings.threads)}
    mine["TUNESMITH_DATA"] = str(settings.data.absolute())
    return mine


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Keeps the data folder to this process: two supervisors would delete one another's spool."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise CannotStart(f"TUNESMITH_DATA={data} cannot be used: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"TUNESMITH_DATA={data} is in use by another trainer process") from None
        yield
    finally:
        os.close(descriptor)


def _write_whole(path: Path, text: str) -> None:
    """Who sees the file sees all of it."""
    with whole(path) as temporary:
        temporary.write_text(text)

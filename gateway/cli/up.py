"""`tunesmith up`: the whole service on one machine, as child processes on one folder.

Called by the command line. Knows which processes there are and what to tell them; knows nothing of what they do.

    up ──── locks DIR, makes keys ── gateway ── trainer-1 ── engine
     │                                     └─── trainer-2 ── engine
     └───── restarts what dies; ends trainers first, then the gateway

The folder holds all that lasts, so a second `up` on it goes on where the first one ended, however that was:

    DIR/lock           held by `up` and by each child, so that it is free only when all are gone
    DIR/secrets.json   the API key, the trainers' tokens and the key that signs URLs; mode 0600
    DIR/tunesmith.db   SQLite
    DIR/objects/       pictures and LoRAs
    DIR/trainer-N/     cache and spool of a trainer
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gateway.cli.children import Child, ChildFailed
from gateway.config import Address, fault_of_ready_file
from store import keys
from store.database import Database
from store.errors import StoreError

MOST_TRAINERS = 64
TENANT = "local"  # the tenant whose key `up` prints
LOCK_WAIT = 5.0  # seconds; children of an `up` that was killed end within this
GATEWAY_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
TRAINER_GRACE = 25.0  # seconds; the trainer itself gives a running step and its report 20


class UpError(Exception):
    """`up` cannot start; the message says what to mend."""


@dataclass
class Secrets:
    """What DIR/secrets.json holds."""

    #: Signs the URLs of objects; hexadecimal, 32 bytes.
    signing_secret: str = field(default_factory=lambda: secrets.token_hex(32))
    #: The tenant's key, in clear: the folder's owner may read it. The database has only its hash.
    api_key: str = ""
    #: Join token by trainer id.
    trainer_tokens: dict[str, str] = field(default_factory=dict)


class Up:
    """The service on one machine.

    Args:
        data: The folder.
        http: HOST:PORT of the HTTP API; port 0 picks a free one.
        grpc: HOST:PORT of the gRPC API.
        metrics: HOST:PORT of the gateway's metrics.
        trainers: How many, 0 to MOST_TRAINERS.
        device: "auto", "cpu" or "cuda".
        ready_file: Where to say that all are ready; None: only on the terminal.

    Raises:
        UpError: Addresses are none, so many trainers are not run, or no ready file can be written; a line for each.
    """

    def __init__(
        self, *, data: Path, http: str, grpc: str, metrics: str, trainers: int, device: str, ready_file: Path | None
    ) -> None:
        self._data = data.absolute()
        self._addresses = {"http": http, "grpc": grpc, "metrics": metrics}
        faults = [_fault_of_address(f"--{name}", value) for name, value in self._addresses.items()]
        if not 0 <= trainers <= MOST_TRAINERS:
            faults.append(f"--trainers {trainers}: 0 to {MOST_TRAINERS} was wanted")
        if ready_file is not None:
            faults.append(self._fault_of_ready_file(ready_file))
        if lines := [fault for fault in faults if fault is not None]:
            raise UpError("\n".join(lines))
        self._trainer_ids = [f"trainer-{number + 1}" for number in range(trainers)]
        self._device = device
        self._ready_file = ready_file
        self._announced = False

    def _fault_of_ready_file(self, path: Path) -> str | None:
        folder = path.absolute().parent
        if self._data.is_relative_to(folder) and not folder.exists():
            return None  # it is made with the data's
        fault = fault_of_ready_file(path)
        return None if fault is None else f"--ready-file {path}: {fault}"

    async def run(self) -> int:
        """Runs until SIGINT or SIGTERM; returns the exit code when every process has ended."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        with _locked(self._make_folder() / "lock") as lock, tempfile.TemporaryDirectory() as scratch:
            self._lock = lock
            self._scratch = Path(scratch)
            await self._startup()
            try:
                await self._serve(stop)
            except ChildFailed as error:
                raise UpError(str(error)) from error
            print("tunesmith: ended; the same command goes on from here", flush=True)
        return 0

    def _make_folder(self) -> Path:
        try:
            self._data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UpError(f"--data {self._data} cannot be made: {error.strerror}") from error
        return self._data

    async def _startup(self) -> None:
        """Makes what the processes need: the schema, a tenant with a key, a token for each trainer."""
        self._secrets = self._read_secrets()
        try:
            database = await Database.open(self._database_url, wakeups=False)
        except (ValueError, StoreError) as error:
            raise UpError(str(error)) from error
        try:
            await self._migrate(database)
            await self._make_keys(database)
        finally:
            await database.close()
        self._write_secrets()

    async def _migrate(self, database: Database) -> None:
        try:
            await database.migrate()
        except (ValueError, StoreError) as error:
            raise UpError(str(error)) from error

    async def _make_keys(self, database: Database) -> None:
        """Keeps what the database knows, and makes the rest: either may have been lost without the other."""
        if await keys.authenticate(database, self._secrets.api_key) is None:
            tenant = await keys.find_or_create_tenant(database, TENANT)
            _, self._secrets.api_key = await keys.create_key(database, tenant.id, "tunesmith up")
        for trainer_id in self._trainer_ids:
            token = self._secrets.trainer_tokens.get(trainer_id, "")
            if await keys.authenticate_trainer(database, token) != trainer_id:
                self._secrets.trainer_tokens[trainer_id] = await keys.create_trainer_token(database, trainer_id)

    async def _serve(self, stop: asyncio.Event) -> None:
        self._gateway = self._child("gateway", ("-m", "gateway"), self._gateway_environment, GATEWAY_GRACE)
        self._trainers = [
            self._child(name, ("-m", "trainer"), partial(self._trainer_environment, name), TRAINER_GRACE)
            for name in self._trainer_ids
        ]
        serving = asyncio.Event()
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)  # one that was killed has left its own: dead pids, old ports

        def gateway_ready() -> None:
            # A restarted gateway takes the same ports: callers and trainers know them by now.
            for key in self._addresses:
                self._addresses[key] = _host_port(self._gateway.ready[key])
            serving.set()
            self._announce()

        gateway = asyncio.create_task(self._gateway.run(gateway_ready))
        trainers: list[asyncio.Task[None]] = []
        stopping = asyncio.create_task(stop.wait())
        try:
            first = asyncio.create_task(serving.wait())
            await asyncio.wait({first, stopping, gateway}, return_when=asyncio.FIRST_COMPLETED)
            if serving.is_set():
                trainers = [asyncio.create_task(trainer.run(self._announce)) for trainer in self._trainers]
            await asyncio.wait({stopping, gateway, *trainers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Trainers first: what they give back on leaving, the gateway still has to write down.
            await _ended(trainers)
            await _ended([gateway, first, stopping])
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
        for task in (gateway, *trainers):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _child(
        self, name: str, arguments: tuple[str, ...], environment: Callable[[], Mapping[str, str]], grace: float
    ) -> Child:
        return Child(name, arguments, environment, self._scratch / f"{name}.json", self._lock, grace)

    def _announce(self) -> None:
        """Says that all are ready, once; rewrites the ready file after each restart, for the pids."""
        children = (self._gateway, *self._trainers)
        if not all(child.ready and child.pid for child in children):
            return
        ready = {
            "http": self._gateway.ready["http"],
            "grpc": self._gateway.ready["grpc"],
            "metrics": self._gateway.ready["metrics"],
            "api_key": self._secrets.api_key,
            "trainer_tokens": {name: self._secrets.trainer_tokens[name] for name in self._trainer_ids},
            "trainer_metrics": {child.name: child.ready["metrics"] for child in self._trainers},
            "database_url": self._database_url,
            "pids": {"gateway": [self._gateway.pid], "trainer": [child.pid for child in self._trainers]},
        }
        if self._ready_file is not None:
            _write_private(self._ready_file.absolute(), json.dumps(ready, indent=2))
        if not self._announced:
            self._announced = True
            self._print(ready)

    def _print(self, ready: dict[str, object]) -> None:
        print(
            f"tunesmith is ready\n"
            f"  HTTP     {ready['http']}  (in a browser: your tunes)\n"
            f"  gRPC     {ready['grpc']}\n"
            f"  metrics  {ready['metrics']}\n"
            f"  API key  {self._secrets.api_key}\n"
            f"  data     {self._data}\n"
            f"  trainers {len(self._trainers)}\n"
            f"Ctrl-C ends it.",
            flush=True,
        )

    @property
    def _database_url(self) -> str:
        return f"sqlite:///{self._data / 'tunesmith.db'}"

    def _gateway_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "TUNESMITH_DATABASE_URL": self._database_url,
            "TUNESMITH_OBJECTS_URL": (self._data / "objects").as_uri(),
            "TUNESMITH_HTTP": self._addresses["http"],
            "TUNESMITH_GRPC": self._addresses["grpc"],
            "TUNESMITH_METRICS": self._addresses["metrics"],
            "TUNESMITH_SIGNING_SECRET": self._secrets.signing_secret,
            "TUNESMITH_READY_FILE": str(self._scratch / "gateway.json"),
        }

    def _trainer_environment(self, trainer_id: str) -> dict[str, str]:
        # Each engine gets its share of the cores: left to chance, two trainers on two cores run five times slower.
        threads = max(1, (os.cpu_count() or 1) // len(self._trainer_ids))
        return {
            "TUNESMITH_THREADS": str(threads),
            **os.environ,
            "TUNESMITH_GATEWAYS": _reachable(self._addresses["grpc"]),
            "TUNESMITH_TRAINER_ID": trainer_id,
            "TUNESMITH_TRAINER_TOKEN": self._secrets.trainer_tokens[trainer_id],
            "TUNESMITH_DEVICE": self._device,
            "TUNESMITH_DATA": str(self._data / trainer_id),
            "TUNESMITH_METRICS": "127.0.0.1:0",
            "TUNESMITH_READY_FILE": str(self._scratch / f"{trainer_id}.json"),
        }

    def _read_secrets(self) -> Secrets:
        path = self._data / "secrets.json"
        try:
            return Secrets(**json.loads(path.read_text()))
        except FileNotFoundError:
            return Secrets()
        except (ValueError, TypeError) as error:
            raise UpError(f"{path} is damaged ({error}); move it away, and new keys are made") from error

    def _write_secrets(self) -> None:
        _write_private(self._data / "secrets.json", json.dumps(asdict(self._secrets), indent=2))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Holds the folder's lock; yields its file descriptor, which children inherit."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace")
                raise UpError(f"{path.parent} is in use by another `tunesmith up` (pid {holder})") from None
            time.sleep(0.05)


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _fault_of_address(option: str, value: str) -> str | None:
    try:
        Address.parse(value)
    except ValueError:
        return f"{option} {value!r} is no address; HOST:PORT was wanted, such as 127.0.0.1:8080"
    return None


def _host_port(url: str) -> str:
    """ "http://127.0.0.1:8080/metrics" -> "127.0.0.1:8080" """
    return url.split("://")[-1].split("/")[0]


def _reachable(address: str) -> str:
    """Where a process on this machine finds a server that listens on `address`."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else address  # noqa: S104  (compared, not bound)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

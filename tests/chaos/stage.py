"""Everything that runs in a chaos run: a database, gateways, trainers, and the proxies between them. Started by run.py,
spoken to by callers.py, broken by faults.py.

    callers ───────────────────────────HTTP─> gateways ──> PostgreSQL; or SQLite, with one gateway
    trainer-1 ──[a proxy a gateway]────gRPC──> │   └─────> one folder of objects
       ...    ──[one proxy for all]────HTTP───>┘
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import psycopg

from store import keys
from store.database import Database
from store.webhooks import endpoints
from store.webhooks.tables import EVENT_TYPES
from tests.chaos.arming import Arming
from tests.servers.daemon import Daemon
from tests.servers.postgres import PostgresServer
from tests.servers.processes import children
from tests.servers.proxy import Proxy
from tests.servers.service import Client

LEASE = 3.0  # seconds
HEARTBEAT = 0.5  # seconds
PATIENCE = 5.0  # seconds that a caller waits for an answer
SECRET = "5e" * 32


class Part:
    """A gateway or a trainer, which is started again whenever it has ended."""

    def __init__(self, name: str, daemon: Daemon) -> None:
        self.name = name
        self.daemon = daemon
        self.down_until = 0.0  # monotonic; before, it is not started again
        self.starts = 0

    @property
    def pid(self) -> int:
        """Of its newest process."""
        return self.daemon.process.pid

    def is_alive(self) -> bool:
        """Whether its newest process runs, or hangs."""
        return self.starts > 0 and self.daemon.process.poll() is None

    def start(self) -> None:
        """Starts it; waits for nothing."""
        self.starts += 1
        self.daemon.start(wait=False)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, where it lives."""
        if self.is_alive():
            self.daemon.process.send_signal(number)


class Stage:
    """All of it.

    Args:
        folder: For everything.
        gateways: How many.
        trainers: How many.
        database: "postgresql" or "sqlite".
    """

    def __init__(self, folder: Path, *, gateways: int, trainers: int, database: str) -> None:
        self.folder = folder
        self.objects = folder / "objects"
        self.arming: Arming | None = None  # of the next starts of gateways; None: they are not armed
        self.postgres: PostgresServer | None = None
        self.gateways: list[Part] = []
        self.trainers: list[Part] = []
        self._opened = contextlib.ExitStack()
        self._wanted = gateways, trainers, database

    def __enter__(self) -> Self:
        try:
            self._startup()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def client(self, chance: random.Random) -> Client:
        """A caller of any gateway, with the run's one key."""
        client = Client(f"http://127.0.0.1:{chance.choice(self._http_ports)}", self._api_key)
        client.timeout = httpx.Timeout(PATIENCE)
        return client

    def parts(self) -> list[Part]:
        """Gateways and trainers."""
        return [*self.gateways, *self.trainers]

    def engine(self, trainer: Part) -> int | None:
        """Process id of a trainer's engine; None where it has none now."""
        with contextlib.suppress(OSError):  # whatever was there has just ended
            for pid in children(trainer.pid) if trainer.is_alive() else ():
                if b"trainer.engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def has_spooled(self, trainer: Part) -> bool:
        """Whether a LoRA waits there to be uploaded or acknowledged."""
        return any((self.folder / trainer.name / "data/spool").glob("*/*.object"))

    def at_work(self) -> list[Part]:
        """Trainers that have an attempt in hand."""
        return [trainer for trainer in self.trainers if trainer.is_alive() and self._attempts(trainer)]

    def at_stake(self) -> list[Part]:
        """Of these, those whose attempt has left a snapshot already: another one would have to go on from there, and
        the tune does not count as one that kills trainers.
        """
        kept = self.objects / "objects/snapshots"
        return [
            trainer
            for trainer in self.at_work()
            if any(any((kept / tune_id / epoch).glob("*")) for tune_id, epoch in self._attempts(trainer))
        ]

    def links_of(self, trainer: Part) -> list[Proxy]:
        """The trainer's ways to the gateways."""
        return [link for (name, _), link in self.links.items() if name == trainer.name]

    def terminate_sessions(self) -> None:
        """Ends every connection to PostgreSQL from the server's side."""
        assert self.postgres is not None
        with contextlib.suppress(psycopg.Error):  # it is down, which is no better for them
            self.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )

    def keep_up(self) -> None:
        """Starts what has ended, unless it is to stay down for a while. To be called again and again."""
        for part in self.parts():
            if not part.is_alive() and time.monotonic() >= part.down_until:
                self._start(part)

    def restart_gateways(self) -> None:
        """Ends them all at once, and waits until they serve again."""
        for gateway in self.gateways:
            gateway.daemon.kill()
        self.keep_up()
        for gateway in self.gateways:
            gateway.daemon.wait_ready()

    def heal(self) -> None:
        """Everything runs, unarmed and unhindered."""
        self.arming = None
        if self.postgres is not None and not self.postgres.is_running():
            self.postgres.start()
        for proxy in (*self.links.values(), self.object_proxy):
            proxy.heal()
        for part in self.parts():
            part.send(signal.SIGCONT)
            part.down_until = 0.0
            if (engine := self.engine(part)) is not None:
                resume(engine)
        self.restart_gateways()  # they may be armed
        for part in self.parts():
            part.daemon.wait_ready()

    async def open_database(self) -> Database:
        """As one more process would."""
        return await Database.open(self.database_url, wakeups=False)

    def _attempts(self, trainer: Part) -> list[tuple[str, str]]:
        """(tune id, epoch) of what it works at, by its folder."""
        names = [path.name for path in (self.folder / trainer.name / "data/work").glob("*")]
        return [(tune_id, epoch) for tune_id, _, epoch in (name.partition(".") for name in names)]

    def _startup(self) -> None:
        gateways, trainers, database = self._wanted
        if database == "postgresql":
            self.postgres = self._opened.enter_context(PostgresServer(durable=True))
            self.database_url = self.postgres.url_of(self.postgres.create_database())
        else:
            self.database_url = f"sqlite:///{self.folder / 'tunesmith.db'}"
        names = [f"trainer-{number}" for number in range(1, trainers + 1)]
        tokens = asyncio.run(self._make_keys(names))
        ports = free_ports(2 * gateways)
        self._http_ports, grpc_ports = ports[:gateways], ports[gateways:]
        self.object_proxy = self._opened.enter_context(Proxy(self._http_ports))
        self.links = {(name, port): self._opened.enter_context(Proxy([port])) for name in names for port in grpc_ports}
        self._opened.callback(self._end_all)
        for number, (http_port, grpc_port) in enumerate(zip(self._http_ports, grpc_ports, strict=True), 1):
            self.gateways.append(self._gateway(f"gateway-{number}", http_port, grpc_port))
        self.trainers = [self._trainer(name, tokens[name], grpc_ports) for name in names]
        self.keep_up()
        for part in self.parts():
            part.daemon.wait_ready()

    def _start(self, part: Part) -> None:
        if part in self.gateways:
            part.daemon.environment["TUNESMITH_FAILPOINTS"] = self.arming.next() if self.arming is not None else ""
        part.start()

    def _gateway(self, name: str, http_port: int, grpc_port: int) -> Part:
        settings = {
            "TUNESMITH_DATABASE_URL": self.database_url,
            "TUNESMITH_OBJECTS_URL": self.objects.as_uri(),
            "TUNESMITH_PUBLIC_URL": f"http://{self.object_proxy.address}",
            "TUNESMITH_HTTP": f"127.0.0.1:{http_port}",
            "TUNESMITH_GRPC": f"127.0.0.1:{grpc_port}",
            "TUNESMITH_METRICS": "127.0.0.1:0",
            "TUNESMITH_SIGNING_SECRET": SECRET,
            "TUNESMITH_GATEWAY_ID": name,
            "TUNESMITH_LEASE_SECONDS": str(LEASE),
            "TUNESMITH_HEARTBEAT_SECONDS": str(HEARTBEAT),
            "TUNESMITH_JUDGES": "1",
            "TUNESMITH_SWEEP_SECONDS": "2",
            "TUNESMITH_LEFTOVER_SECONDS": "1",
        }
        return Part(name, Daemon(self.folder / name, ["-m", "gateway"], settings))

    def _trainer(self, name: str, token: str, grpc_ports: Sequence[int]) -> Part:
        settings = {
            "TUNESMITH_GATEWAYS": ",".join(self.links[name, port].address for port in grpc_ports),
            "TUNESMITH_TRAINER_ID": name,
            "TUNESMITH_TRAINER_TOKEN": token,
            "TUNESMITH_DEVICE": "cpu",
            "TUNESMITH_DATA": str(self.folder / name / "data"),
            "TUNESMITH_METRICS": "127.0.0.1:0",
            "TUNESMITH_GRACE": "8",
            "TUNESMITH_STEP_DEADLINE": "5",
        }
        return Part(name, Daemon(self.folder / name, ["-m", "trainer"], settings))

    async def _make_keys(self, trainers: Sequence[str]) -> dict[str, str]:
        database = await self.open_database()
        try:
            await database.migrate()
            tenant = await keys.create_tenant(database, "chaos")
            _, self._api_key = await keys.create_key(database, tenant.id, "chaos")
            # Nobody listens there, nor may a gateway ask: what is held against the log is what was written to be sent.
            await endpoints.add(database, "chaos", "http://127.0.0.1:9/", EVENT_TYPES)
            return {name: await keys.create_trainer_token(database, name) for name in trainers}
        finally:
            await database.close()

    def _end_all(self) -> None:
        """At once: what is worth anything is in the database and the objects."""
        for part in self.parts():
            if part.starts > 0:
                part.daemon.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. Fixed ones are needed: a gateway comes again where it was."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def resume(pid: int) -> None:
    """SIGCONT, where the process is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)

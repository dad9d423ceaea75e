"""Runs one gateway process on any database, without `tunesmith up`. Used where the database or the number of gateways
is what matters."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from store import keys
from store.database import Database
from tests.servers.daemon import Daemon
from tests.servers.service import Client

QUEUE_LIMIT = 1_000_000  # so many that no benchmark meets it


@dataclass(frozen=True)
class Account:
    """A tenant of a gateway, and its key."""

    url: str
    """The gateway's, without a slash at its end."""
    tenant_id: str
    name: str
    key: str

    def client(self) -> Client:
        """An HTTP caller with the key."""
        return Client(self.url, self.key)


class Gateway(Daemon):
    """One `python -m gateway`.

    Args:
        database_url: Its database; the schema is made where it is missing.
        folder: For its objects, its log and its ready file.
        environment: Added to ours.
    """

    def __init__(self, database_url: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._database_url = database_url
        self._accounts = itertools.count(1)
        settings = {
            "TUNESMITH_DATABASE_URL": database_url,
            "TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri(),
            "TUNESMITH_HTTP": "127.0.0.1:0",
            "TUNESMITH_GRPC": "127.0.0.1:0",
            "TUNESMITH_METRICS": "127.0.0.1:0",
            "TUNESMITH_SIGNING_SECRET": "5e" * 32,
            "TUNESMITH_REQUESTS_PER_SECOND": "1000000",  # what is measured with it is how much it takes
        }
        super().__init__(folder, ["-m", "gateway"], {**settings, **(environment or {})})

    def start(self, *, wait: bool = True) -> None:
        """Makes a key, a token for the trainer "trainer-1", and starts it."""
        self.api_key, self.trainer_token = asyncio.run(self._make_keys())
        super().start(wait=wait)

    def client(self) -> Client:
        """An HTTP caller with a key of its own tenant."""
        return Client(self.ready["http"], self.api_key)

    def account(self, *, is_operator: bool = False) -> Account:
        """A new tenant with a key, so that a test sees nothing but its own."""
        name = f"tenant-{next(self._accounts)}"
        return asyncio.run(self._make_account(name, is_operator))

    def key_of(self, account: Account, *scopes: str) -> str:
        """Another key of the account's tenant, with these scopes alone."""
        return asyncio.run(self._make_key(account.tenant_id, scopes))

    async def _make_key(self, tenant_id: str, scopes: Sequence[str]) -> str:
        database = await Database.open(self._database_url, wakeups=False)
        try:
            return (await keys.create_key(database, tenant_id, "test", scopes))[1]
        finally:
            await database.close()

    async def _make_account(self, name: str, is_operator: bool) -> Account:
        database = await Database.open(self._database_url, wakeups=False)
        try:
            tenant = await keys.create_tenant(database, name, is_operator=is_operator)
            _, secret = await keys.create_key(database, tenant.id, "test")
            return Account(self.ready["http"], tenant.id, name, secret)
        finally:
            await database.close()

    async def _make_keys(self) -> tuple[str, str]:
        database = await Database.open(self._database_url, wakeups=False)
        try:
            await database.migrate()
            tenant = await keys.find_or_create_tenant(database, "bench", queue_limit=QUEUE_LIMIT)
            _, secret = await keys.create_key(database, tenant.id, "bench")
            return secret, await keys.create_trainer_token(database, "trainer-1")
        finally:
            await database.close()

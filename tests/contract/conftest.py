"""One gateway process on SQLite without a trainer, and its OpenAPI document, for what holds the two together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from store import keys
from store.database import Database
from tests.servers.contract import Contract
from tests.servers.gateway import Gateway


@pytest.fixture(scope="session")
def database_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract") / "tunesmith.db"


@pytest.fixture(scope="session")
def gateway(database_file: Path) -> Iterator[Gateway]:
    """Tunes stay pending here: nobody trains them."""
    patient = {"TUNESMITH_REQUESTS_PER_SECOND": "10000"}
    with Gateway(f"sqlite:///{database_file}", database_file.parent / "gateway", patient) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def url(gateway: Gateway) -> str:
    """Where it is reached."""
    address: str = gateway.ready["http"]
    return address


@pytest.fixture(scope="session")
def contract(url: str) -> Contract:
    """The document that it serves."""
    return Contract(httpx.get(f"{url}/openapi.json").json())


@pytest.fixture(scope="session")
def key_of(gateway: Gateway, database_file: Path) -> Callable[..., str]:
    """Makes a tenant where there is none of the name, and a key of it."""

    async def make(tenant: str, scopes: tuple[str, ...], queue_limit: int) -> str:
        database = await Database.open(f"sqlite:///{database_file}", wakeups=False)
        try:
            owner = await keys.find_or_create_tenant(database, tenant, queue_limit=queue_limit)
            return (await keys.create_key(database, owner.id, "test", scopes))[1]
        finally:
            await database.close()

    def key(tenant: str, *scopes: str, queue_limit: int = 10_000) -> str:
        return asyncio.run(make(tenant, scopes or ("*",), queue_limit))

    return key

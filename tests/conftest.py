"""Fixtures that more than one package's tests use: databases, empty and migrated, on SQLite and a real PostgreSQL; an
S3 server. And what tests have measured is shown at the end."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from store.database import Database
from tests.servers.moto import Moto
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL, for as long as the session lasts."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a migrated database that is copied and never used."""
    name = postgres_server.create_database()
    asyncio.run(_migrate(postgres_server.url_of(name)))
    return name


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of a fresh, migrated PostgreSQL database."""
    name = postgres_server.create_database(postgres_template)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_folder() -> Iterator[Path]:
    """In memory where the host has such a folder: a test's commits need not survive a power cut."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="tunesmith-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sqlite_template(sqlite_folder: Path) -> Path:
    """A migrated file that is copied and never used."""
    asyncio.run(_migrate(f"sqlite:///{sqlite_folder / 'template.db'}"))
    return sqlite_folder / "template.db"


@pytest.fixture
def sqlite_url(sqlite_template: Path, sqlite_folder: Path) -> Iterator[str]:
    """URL of a fresh, migrated SQLite database."""
    with tempfile.TemporaryDirectory(dir=sqlite_folder) as folder:
        path = shutil.copy(sqlite_template, Path(folder) / "tunesmith.db")
        yield f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, migrated database, of each kind in turn."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    assert isinstance(url, str)
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open, migrated, empty database, of each kind in turn."""
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """An S3 server with one bucket, for as long as the session lasts."""
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what tests record as "measured: ...": figures that are held against no bar, since machines differ."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [
        f"{report.nodeid}: {name.removeprefix('measured: ')}: {value}"
        for report in reports
        for name, value in report.user_properties
        if name.startswith("measured: ")
    ]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


async def _migrate(url: str) -> None:
    opened = await Database.open(url, wakeups=False)
    await opened.migrate()
    await opened.close()

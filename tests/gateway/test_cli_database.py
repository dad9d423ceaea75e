"""Which database `tunesmith` works in, whatever the command: one that a gateway of this release has made or
upgraded."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command

from gateway import config
from gateway.cli.__main__ import app
from gateway.config import ConfigError
from gateway.server import Server
from store import migrations
from store.database import Database

TOLD = "tunesmith: TUNESMITH_DATABASE_URL=(not shown): "


def tunesmith(*arguments: str) -> int:
    code: int = app(arguments, result_action="return_int_as_exit_code_else_zero")
    return code


@pytest.fixture
def path(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of this release; what it is turned into is named by TUNESMITH_DATABASE_URL."""
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", sqlite_url)
    return Path(sqlite_url.removeprefix("sqlite:///"))


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        [(found,)] = connection.execute("SELECT version_num FROM alembic_version")
    return str(found)


def newest(path: Path) -> str:
    """Turns it into a newer release's; returns what it was."""
    before = revision(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    return before


async def downgrade(path: Path, to: str) -> None:
    database = await Database.open(f"sqlite:///{path}", wakeups=False)
    async with database.write() as transaction:
        await transaction.connection.run_sync(lambda it: command.downgrade(migrations.configuration(it), to))
    await database.close()


@pytest.mark.parametrize("order", [("tenant", "list"), ("key", "create", "acme", "--create-database")])
def test_database_of_an_older_release_is_left_to_a_gateway(
    path: Path, capsys: pytest.CaptureFixture[str], order: tuple[str, ...]
) -> None:
    head = revision(path)
    asyncio.run(downgrade(path, "0010"))

    assert tunesmith(*order) == 1

    said = f"the database {path} is at revision 0010, and this release wants {head}: start a gateway of this release"
    assert capsys.readouterr().err == f"{TOLD}{said}, which brings it up to date\n"
    assert revision(path) == "0010"


def test_database_of_a_newer_release_is_named_in_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = newest(path)

    assert tunesmith("tenant", "list") == 1

    [said] = capsys.readouterr().err.splitlines()
    unknown = f"at revision 9999, which this release does not know, its own newest being {head}: "
    assert said.startswith(f"{TOLD}the database {path} is {unknown}")
    assert said.endswith("or restore the backup from before that upgrade")


async def test_gateway_does_not_start_on_a_newer_releases_database(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest(path)
    monkeypatch.setenv("TUNESMITH_OBJECTS_URL", (tmp_path / "objects").as_uri())
    monkeypatch.setenv("TUNESMITH_SIGNING_SECRET", "a secret of tests")
    monkeypatch.setenv("TUNESMITH_HTTP", "127.0.0.1:0")
    server = Server(config.read())

    with pytest.raises(ConfigError, match=r"^TUNESMITH_DATABASE_URL=\(not shown\): .* is at revision 9999, which this"):
        await server.startup()
    await server.shutdown()


@pytest.mark.parametrize("order", [("tenant", "list"), ("key", "create", "acme", "--create-database")])
@pytest.mark.parametrize("table", ["books", "alembic_version"])
def test_another_programs_file_is_left_as_it_is(
    path: Path, capsys: pytest.CaptureFixture[str], order: tuple[str, ...], table: str
) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE runs (id)")
        connection.execute(f"CREATE TABLE {table} (version_num)")
    before = path.read_bytes()

    assert tunesmith(*order) == 1

    assert capsys.readouterr().err.startswith(f"{TOLD}{path} is another program's database: it has a table ")
    assert path.read_bytes() == before


def test_empty_file_is_filled_only_where_that_is_asked_for(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"")

    refused, size, said = tunesmith("tenant", "list"), path.stat().st_size, capsys.readouterr()
    made = tunesmith("key", "create", "acme", "--create-database")

    assert (refused, size, made) == (1, 0, 0)
    assert said.err.startswith(f"tunesmith: there is no database in {path}, which is empty; a gateway makes it when")


@pytest.mark.parametrize(
    "order",
    [("key", "create", "a:b"), ("key", "create", "acme", "--days=-1"), ("trainer-token", "create", "a b")],
)
def test_order_that_is_refused_makes_no_database(
    path: Path, capsys: pytest.CaptureFixture[str], order: tuple[str, ...]
) -> None:
    path.unlink()

    assert tunesmith(*order, "--create-database") == 1

    assert " wanted\n" in capsys.readouterr().err
    assert not path.exists()


def test_folder_is_no_database(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{path.parent}")
    folder = tunesmith("key", "create", "acme", "--create-database")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{path}/below/a.db")
    below = tunesmith("key", "create", "acme", "--create-database")

    of_folder, of_file = capsys.readouterr().err.splitlines()
    assert (folder, below) == (1, 1)
    assert of_folder == f"{TOLD}{path.parent} is a folder; the path of a file was wanted"
    assert of_file == f"{TOLD}the database's folder {path}/below cannot be used: Not a directory"


def test_up_does_not_start_on_a_newer_releases_database(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest(path)

    assert tunesmith("up", "--data", str(path.parent)) == 1

    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"tunesmith up: the database {path} is at revision 9999, which this")

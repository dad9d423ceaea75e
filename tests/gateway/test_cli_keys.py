"""`tunesmith key` and `tunesmith trainer-token`, as an operator uses them before the first gateway starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.cli.__main__ import app
from store import keys
from store.database import Database
from store.keys import Caller


@pytest.fixture
def database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'tunesmith.db'}"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
    return url


def tunesmith(*arguments: str) -> int:
    code: int = app(arguments, result_action="return_int_as_exit_code_else_zero")
    return code


def caller(url: str, secret: str) -> Caller | None:
    async def ask() -> Caller | None:
        database = await Database.open(url, wakeups=False)
        try:
            return await keys.authenticate(database, secret)
        finally:
            await database.close()

    return asyncio.run(ask())


def trainer(url: str, secret: str) -> str | None:
    async def ask() -> str | None:
        database = await Database.open(url, wakeups=False)
        try:
            return await keys.authenticate_trainer(database, secret)
        finally:
            await database.close()

    return asyncio.run(ask())


def test_created_key_is_the_only_line_of_output_and_opens_its_tenant(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunesmith("key", "create", "acme", "--name", "ci", "--scope", "tune:read") == 0

    said = capsys.readouterr()
    found = caller(database_url, said.out.strip())
    assert found is not None
    assert (found.tenant_name, found.scopes, found.is_operator) == ("acme", frozenset({"tune:read"}), False)
    assert found.key_id in said.err


def test_revoked_key_opens_nothing(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    tunesmith("key", "create", "acme")
    said = capsys.readouterr()

    assert tunesmith("key", "revoke", said.err.split()[0]) == 0

    assert caller(database_url, said.out.strip()) is None


def test_tenant_that_is_no_operator_becomes_none_by_a_second_key(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tunesmith("key", "create", "acme")

    assert tunesmith("key", "create", "acme", "--operator") == 1
    assert "is there already" in capsys.readouterr().err


def test_trainer_token_names_its_trainer_until_it_is_revoked(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tunesmith("trainer-token", "create", "gpu-1")
    token = capsys.readouterr().out.strip()
    assert trainer(database_url, token) == "gpu-1"

    assert tunesmith("trainer-token", "revoke", "gpu-1") == 0

    assert trainer(database_url, token) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trainer-token", "create", "no good"), "is no trainer id"),
        (("key", "revoke", "key_unknown"), "there is no key key_unknown"),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    database_url: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert tunesmith(*arguments) == 1

    assert said in capsys.readouterr().err


def test_missing_database_url_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)

    assert tunesmith("trainer-token", "create", "gpu-1") == 1

    assert "TUNESMITH_DATABASE_URL is not set" in capsys.readouterr().err

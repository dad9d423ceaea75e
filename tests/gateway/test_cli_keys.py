"""`tunesmith key` and `tunesmith trainer-token`, as an operator uses them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.cli.__main__ import app
from gateway.cli.columns import lines
from store import keys
from store.database import Database
from store.keys import Caller


@pytest.fixture
def database_url(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", sqlite_url)
    return sqlite_url


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

    key_id = said.err.split()[0]
    assert tunesmith("key", "revoke", key_id) == 0

    assert capsys.readouterr().err == f"{key_id} of tenant acme is revoked\n"
    assert caller(database_url, said.out.strip()) is None


def test_leaked_key_is_revoked_by_itself_and_never_repeated(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tunesmith("key", "create", "acme", "--name", "ci")
    said = capsys.readouterr()
    key_id, secret = said.err.split()[0], said.out.strip()

    codes = [tunesmith("key", "revoke", secret), tunesmith("key", "revoke", secret)]
    codes.append(tunesmith("key", "revoke", secret + "x"))

    first, second, third = capsys.readouterr().err.splitlines()
    assert codes == [0, 0, 1]
    assert first == f"{key_id} of tenant acme, 'ci', is revoked"
    assert second.startswith(f"{first} already, since 2")
    assert third == "tunesmith: there is no such key; an id, key_..., or a key itself, ts_..., was wanted"
    assert caller(database_url, secret) is None


def test_keys_are_listed_with_all_but_their_secrets(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    tunesmith("key", "create", "acme", "--name", "ci bot", "--scope", "tune:read", "--scope", "asset:*", "--days", "2")
    tunesmith("key", "create", "zebra")
    made = capsys.readouterr()

    assert tunesmith("key", "list") == 0
    all_of_them = capsys.readouterr().out
    assert tunesmith("key", "list", "--tenant", "acme") == 0

    header, line = (re.split(r"  +", each) for each in capsys.readouterr().out.splitlines())
    acme = made.err.split()[0]
    assert header == ["KEY", "TENANT", "STATE", "MADE", "EXPIRES", "REVOKED", "SCOPES", "NAME"]
    assert line[:3] + line[5:] == [acme, "acme", "valid", "-", "tune:read,asset:*", "ci bot"]
    assert line[4] > line[3] > "2"
    assert [each.split()[1] for each in all_of_them.splitlines()[1:]] == ["acme", "zebra"]
    assert not any(secret in all_of_them for secret in made.out.split())


def test_tokens_are_listed_with_their_trainers(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for trainer_id in ("gpu-1", "gpu-2"):
        tunesmith("trainer-token", "create", trainer_id)
    tunesmith("trainer-token", "revoke", "gpu-1")
    capsys.readouterr()

    assert tunesmith("trainer-token", "list") == 0

    header, *listed = (re.split(r"  +", each) for each in capsys.readouterr().out.splitlines())
    assert header == ["TRAINER", "MADE", "REVOKED"]
    assert [(line[0], line[2] == "-") for line in listed] == [("gpu-1", False), ("gpu-2", True)]


def test_everything_wrong_with_a_new_key_is_told_at_once(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("key", "create", " acme", "--name", "\x1b[31m", "--days", "inf") == 1

    tenant, name, days = capsys.readouterr().err.splitlines()
    assert tenant.startswith("tunesmith: the tenant's name is ' acme'; 1 to 128 printable")
    assert name.startswith("tunesmith: the key's name is '\\x1b[31m'; up to 128 printable")
    assert days == "tunesmith: the days are inf; a number above 0, at most 36525, was wanted"


@pytest.mark.parametrize("days", ["1e12", "nan", "0", "-1", "36526"])
def test_no_key_is_made_for_days_that_no_calendar_has(
    database_url: str, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    assert tunesmith("key", "create", "acme", f"--days={days}") == 1

    assert f"the days are {float(days):g}; a number above 0" in capsys.readouterr().err


def test_there_is_no_way_to_a_key_that_may_do_nothing(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tunesmith("key", "create", "acme", "--empty-scope")

    assert "ts_" not in capsys.readouterr().out


def test_what_a_terminal_would_obey_is_listed_escaped() -> None:
    assert lines([("A", "B"), ("\x1b[2J", "c")]) == "A        B\n\\x1b[2J  c"


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


def test_token_that_is_revoked_already_says_since_when(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    tunesmith("trainer-token", "create", "gpu-1")
    token = capsys.readouterr().out.strip()

    codes = [tunesmith("trainer-token", "revoke", given) for given in (token, token, "gpu-1")]

    first, by_token, by_trainer = capsys.readouterr().err.splitlines()
    assert codes == [0, 0, 0]
    assert first == "1 of gpu-1's tokens ended"
    assert by_token.startswith("this token of gpu-1 is revoked already, since 2")
    assert by_trainer.startswith("gpu-1's tokens are revoked already, since 2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trainer-token", "create", "no good"), "is no trainer id"),
        (("key", "revoke", "key_unknown"), "there is no key key_unknown"),
        (("key", "list", "--tenant", "nobody"), "there is no tenant 'nobody'"),
        (("trainer-token", "revoke", "gpu-9"), "there is no token of a trainer 'gpu-9'"),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    database_url: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert tunesmith(*arguments) == 1

    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [("key", "create", "acme"), ("trainer-token", "create", "gpu-1")])
def test_database_that_is_not_there_is_made_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    path = tmp_path / "mistyped" / "tunesmith.db"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{path}")

    refused, was_made, said = tunesmith(*command), path.parent.exists(), capsys.readouterr()
    made = tunesmith(*command, "--create-database")

    assert (refused, was_made, said.out) == (1, False, "")
    assert said.err.startswith(f"tunesmith: there is no database {path}; a gateway makes it when it starts, and so do")
    assert (made, path.exists()) == (0, True)
    assert capsys.readouterr().out.startswith("t")


def test_what_is_no_database_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0:root:/root:/bin/sh\n" * 40)
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{path}")

    assert tunesmith("key", "list") == 1

    assert (
        capsys.readouterr().err == f"tunesmith: TUNESMITH_DATABASE_URL=(not shown): {path} cannot be read as a database"
        " of SQLite: file is not a database\n"
    )


def test_missing_database_url_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)

    assert tunesmith("trainer-token", "create", "gpu-1") == 1

    assert "TUNESMITH_DATABASE_URL is not set" in capsys.readouterr().err

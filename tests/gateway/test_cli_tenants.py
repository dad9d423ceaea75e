"""`tunesmith tenant`, as an operator uses it."""

from __future__ import annotations

import pytest

from gateway.cli.__main__ import app


@pytest.fixture(autouse=True)
def tenant(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """acme, as its first key makes it."""
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", sqlite_url)
    assert tunesmith("key", "create", "acme") == 0
    capsys.readouterr()


def tunesmith(*arguments: str) -> int:
    code: int = app(arguments, result_action="return_int_as_exit_code_else_zero")
    return code


def test_set_limits_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--weight", "2.5", "--running-limit", "3", "--queue-limit", "40", "--rate", "7.5")
    assert tunesmith("tenant", "set", "acme", *limits) == 0
    assert tunesmith("tenant", "list") == 0

    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["TENANT", "WEIGHT", "RUNNING", "LIMIT", "QUEUED", "LIMIT", "RATE", "ID"]
    assert line.split()[:-1] == ["acme", "2.5", "0", "3", "0", "40", "7.5"]


def test_one_limit_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("tenant", "set", "acme", "--running-limit", "0") == 0

    assert capsys.readouterr().err.splitlines()[1].split()[:-1] == ["acme", "1", "0", "0", "0", "10000", "default"]


def test_a_rate_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("tenant", "set", "acme", "--rate", "5") == 0
    assert tunesmith("tenant", "set", "acme", "--rate", "default") == 0

    first, second = (line.split()[-2] for line in capsys.readouterr().err.splitlines() if line.startswith("acme"))
    assert (first, second) == ("5", "default")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("acme", "--weight", "0"), "the weight is 0; 0.001 to 1000000 was wanted"),
        (("acme", "--weight", "nan"), "the weight is nan; 0.001 to 1000000 was wanted"),
        (("acme", "--running-limit", "-1"), "the running limit is -1; 0 to 2147483647 was wanted"),
        (("acme", "--queue-limit", "9999999999"), "the queue limit is 9999999999; 0 to 2147483647 was wanted"),
        (("acme",), "nothing to set; a weight, a running limit, a queue limit or a rate was wanted"),
        (("acme", "--rate", "0"), "the rate is 0; 0.001 to 1000000, or default, was wanted"),
        (("acme", "--rate", "inf"), "the rate is inf; 0.001 to 1000000, or default, was wanted"),
        (("acme", "--rate", "1e-300"), "the rate is 1e-300; 0.001 to 1000000, or default, was wanted"),
        (("nobody", "--weight", "2"), "there is no tenant 'nobody'"),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunesmith("tenant", "set", *arguments) == 1

    assert capsys.readouterr().err == f"tunesmith: {said}\n"


def test_everything_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--rate", "-1", "--weight", "0", "--queue-limit", "-3", "--running-limit", "-1")

    assert tunesmith("tenant", "set", "nobody", *wrong) == 1

    tenant, *limits = capsys.readouterr().err.splitlines()
    assert tenant == "tunesmith: there is no tenant 'nobody'"
    told = [line.removeprefix("tunesmith: the ").split(" is ")[0] for line in limits]
    assert told == ["weight", "running limit", "queue limit", "rate"]

"""`tunesmith trainer`, as an operator uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.cli.__main__ import app
from store import trainers
from store.database import Database

HELLO = trainers.Hello(
    "trainer-1", "boot-1", "session-1", "gateway-1", ["image/a"], 2, "NVIDIA H100", 80 * 2**30, "0.1"
)


@pytest.fixture(autouse=True)
def trainer(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """trainer-1, as its Hello makes it."""
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", sqlite_url)
    in_gateway(sqlite_url, lambda database: trainers.connect(database, HELLO))


def in_gateway(url: str, work: Callable[[Database], Awaitable[object]]) -> None:
    async def run() -> None:
        database = await Database.open(url)
        await work(database)
        await database.close()

    asyncio.run(run())


def tunesmith(*arguments: str) -> int:
    code: int = app(arguments, result_action="return_int_as_exit_code_else_zero")
    return code


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The cells of the one trainer."""
    assert tunesmith("trainer", "list") == 0
    _, line = capsys.readouterr().out.splitlines()
    return [cell.strip() for cell in line.split("  ") if cell]


def test_trainers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    name, gateway, slots, holds, device, seen, drained = listed(capsys)

    assert (name, gateway, slots, holds, device, drained) == ("trainer-1", "gateway-1", "2", "-", "NVIDIA H100", "-")
    assert seen.endswith(" s ago")


def test_a_trainer_whose_stream_has_ended_is_at_no_gateway(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    in_gateway(sqlite_url, lambda database: trainers.disconnect(database, "trainer-1", "session-1"))

    assert listed(capsys)[1] == "-"


def test_a_drained_trainer_is_listed_with_the_reason_until_it_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("trainer", "drain", "trainer-1", "--reason", "a new disk") == 0
    said = capsys.readouterr().err
    drained = listed(capsys)[-1]
    assert tunesmith("trainer", "resume", "trainer-1") == 0
    capsys.readouterr()

    assert said.splitlines()[1].endswith("a new disk")
    assert drained == "a new disk"
    assert listed(capsys)[-1] == "-"


def test_a_drain_without_a_reason_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("trainer", "drain", "trainer-1") == 0

    assert capsys.readouterr().err.splitlines()[1].endswith("the operator wants it empty")


def test_a_second_drain_without_a_reason_keeps_the_first_ones(capsys: pytest.CaptureFixture[str]) -> None:
    tunesmith("trainer", "drain", "trainer-1", "--reason", "a new disk")
    tunesmith("trainer", "drain", "trainer-1")
    capsys.readouterr()

    assert listed(capsys)[-1] == "a new disk"


async def test_gateways_on_postgresql_hear_of_a_drain_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", postgres_url)
    gateway = await Database.open(postgres_url)
    await trainers.connect(gateway, HELLO)

    async with gateway.wakeups.subscribe("trainer") as woken:
        code = await asyncio.to_thread(tunesmith, "trainer", "drain", "trainer-1")
        heard = await woken.wait(10.0)
    await gateway.close()

    assert (code, heard) == (0, ["trainer-1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("drain", "trainer-9"), "there is no trainer 'trainer-9': none of that id has ever connected"),
        (("resume", "trainer-9"), "there is no trainer 'trainer-9': none of that id has ever connected"),
        *(
            (
                ("drain", "trainer-1", "--reason", reason),
                f"the reason is {reason!r}; 1 to 200 printable characters, not blanks alone, were wanted",
            )
            for reason in ("", " ")
        ),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunesmith("trainer", *arguments) == 1

    assert capsys.readouterr().err == f"tunesmith: {said}\n"

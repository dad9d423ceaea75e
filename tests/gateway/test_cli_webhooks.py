"""`tunesmith webhook`, as an operator uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.cli.__main__ import app
from store import tenants, tunes
from store.database import Database
from store.webhooks import deliveries
from store.webhooks.deliveries import Answer
from tests.store.world import make_world

URL = "https://receiver.example/hook"


@pytest.fixture(autouse=True)
def tenant(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """acme."""
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", sqlite_url)
    in_gateway(sqlite_url, make_world)


def in_gateway(url: str, work: Callable[[Database], Awaitable[object]]) -> None:
    async def run() -> None:
        database = await Database.open(url)
        await work(database)
        await database.close()

    asyncio.run(run())


def tunesmith(*arguments: str) -> int:
    code: int = app(arguments, result_action="return_int_as_exit_code_else_zero")
    return code


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The cells of each line but the first that a command prints."""
    assert tunesmith("webhook", *arguments) == 0
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in capsys.readouterr().out.splitlines()[1:]
    ]


def added(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    """A new endpoint's id and secret."""
    assert tunesmith("webhook", "add", "acme", URL, *more) == 0
    said = capsys.readouterr()
    return said.err.split()[0], said.out.strip()


async def tell(database: Database, answer: Answer) -> None:
    """A tune ends, and one try of its webhook goes so."""
    [tenant_id] = [each.id for each in await tenants.list_tenants(database) if each.name == "acme"]
    new = tunes.NewTune(
        tenant_id=tenant_id,
        name="cat",
        checkpoint_ref="tunesmith:tiny-shapes",
        details={"steps": 10},
        files=[],
        steps=10,
        trigger_words=[],
        request_hash="h",
    )
    tune = (await tunes.submit(database, new)).tune
    await tunes.cancel(database, tenant_id, tune.id)
    for waiting in await deliveries.due_endpoints(database):
        for due in await deliveries.claim(database, waiting.endpoint_id, 8, 30):
            await deliveries.conclude(database, due, answer)


def test_added_endpoint_prints_its_secret_alone_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, secret = added(capsys, "--type", "tune.failed", "--type", "tune.running", "--description", "pager")

    [listed] = rows(capsys, "list")

    assert secret.startswith("whsec_")
    assert listed == [endpoint, "acme", "enabled", "-", "tune.running,tune.failed", URL, "pager"]


def test_private_address_is_added_for_gateways_may_allow_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("webhook", "add", "acme", "http://10.0.0.7:8080/hook") == 0

    assert rows(capsys, "list")[-1][5] == "http://10.0.0.7:8080/hook"  # before it stands the secret


def test_log_tells_each_message_and_each_of_its_tries(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)
    in_gateway(sqlite_url, lambda database: tell(database, Answer(1.25, status=500)))

    [line] = rows(capsys, "log", "--endpoint", endpoint)
    message = line[1]
    one, tries = rows(capsys, "log", message)[0], rows(capsys, "log", message)[-1]
    [waiting] = rows(capsys, "list")

    assert message.startswith("msg_")
    assert line == one
    assert line[2:4] == [endpoint, "tune.cancelled"]
    assert line[5:] == ["pending", "1", "HTTP 500"]
    assert tries[1:] == [endpoint, "HTTP 500", "1.25"]
    assert waiting[2].startswith("failing since ")
    assert waiting[3].startswith("1, ")


def test_delivered_message_can_be_sent_again(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    added(capsys)
    in_gateway(sqlite_url, lambda database: tell(database, Answer(0.1, status=200)))
    message = rows(capsys, "log")[0][1]

    assert tunesmith("webhook", "resend", message) == 0

    assert capsys.readouterr().err == f"{message} is sent again to 1 endpoint\n"
    assert rows(capsys, "log")[0][5:] == ["pending", "1", "HTTP 200"]


def test_resent_message_waits_for_a_disabled_endpoint_and_says_so(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, _), (second, _) = added(capsys), added(capsys)
    in_gateway(sqlite_url, lambda database: tell(database, Answer(0.1, status=200)))
    message = rows(capsys, "log")[0][1]
    tunesmith("webhook", "disable", second)

    assert tunesmith("webhook", "resend", message) == 0
    _, one, other = capsys.readouterr().err.splitlines()
    assert tunesmith("webhook", "resend", message, "--endpoint", second) == 0
    alone = capsys.readouterr().err.splitlines()

    assert one == f"{message} is sent again to 1 endpoint"
    assert other == f"{message} waits for {second}, which is disabled, until `webhook enable {second}`"
    assert alone == [other]
    assert {line[0]: line[3][:2] for line in rows(capsys, "list")} == {first: "1,", second: "1,"}


def test_second_endpoint_with_the_same_url_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = added(capsys)

    assert tunesmith("webhook", "add", "acme", URL, "--type", "tune.failed") == 0

    said = capsys.readouterr()
    assert said.err.splitlines()[1].startswith(f"tunesmith: warning: {first} has this URL too")
    assert said.out.startswith("whsec_")
    assert len(said.out.split()) == 1


def test_everything_wrong_with_a_new_endpoint_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("webhook", "add", "nobody", "ftp://x", "--description", "x" * 201) == 1

    tenant, url, description = capsys.readouterr().err.splitlines()
    assert tenant == "tunesmith: there is no tenant 'nobody'"
    assert url.startswith("tunesmith: the URL is 'ftp://x': ")
    assert description.startswith("tunesmith: the description is 'xxx")


def test_endpoint_that_was_told_nothing_has_an_empty_log(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)

    assert rows(capsys, "log", "--endpoint", endpoint) == []


def test_disabled_endpoint_says_why_until_it_is_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)

    assert tunesmith("webhook", "disable", endpoint, "--reason", "moved away") == 0
    disabled = rows(capsys, "list")[0][2]
    assert tunesmith("webhook", "enable", endpoint) == 0

    assert capsys.readouterr().err == f"{endpoint} is enabled\n"
    assert disabled == "disabled: moved away"
    assert rows(capsys, "list")[0][2] == "enabled"


def test_endpoint_disabled_again_without_a_reason_keeps_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)

    for more in ((), ("--reason", "moved away"), ()):
        assert tunesmith("webhook", "disable", endpoint, *more) == 0

    reasons = ("the operator wants it quiet", "moved away", "moved away")
    assert capsys.readouterr().err.splitlines() == [f"{endpoint} is disabled: {reason}" for reason in reasons]


def test_rotation_that_keeps_no_old_secret_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)

    assert tunesmith("webhook", "rotate", endpoint, "--hours", "0") == 0

    assert capsys.readouterr().err == f"{endpoint} signs with the new secret, and no longer with the old one\n"


def test_rotation_prints_another_secret(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, first = added(capsys)

    assert tunesmith("webhook", "rotate", endpoint, "--hours", "2") == 0

    said = capsys.readouterr()
    assert said.out.strip().startswith("whsec_")
    assert said.out.strip() != first
    assert "for 2 hours with the old one too" in said.err


def test_removed_endpoint_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, _ = added(capsys)

    assert tunesmith("webhook", "remove", endpoint) == 0

    assert capsys.readouterr().err == f"{endpoint} is removed, with its log\n"
    assert rows(capsys, "list") == []


@pytest.mark.parametrize(
    "url",
    [
        "https://us3r:s3cret@receiver.example/",
        "https://us3r@receiver.example/#here",
        "us3r:s3cret@receiver.example",
        "http:/us3r:s3cret@receiver.example/",
        "http://us3r:s3c#ret@receiver.example/",
        "http://us3r:s3c ret@receiver.example/",
    ],
)
def test_user_and_password_of_a_url_are_not_repeated(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("webhook", "add", "acme", url) == 1

    told = "http://HOST/... or https://HOST/... was wanted, without user, password or fragment"
    assert capsys.readouterr().err == f"tunesmith: the URL is (not shown); {told}\n"


def test_url_with_an_at_in_its_path_is_told_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunesmith("webhook", "add", "acme", "https://receiver.example:25/@team") == 1

    said = "its port is 25; wanted 80, 443, or 1024 to 65535"
    assert capsys.readouterr().err == f"tunesmith: the URL is (not shown): {said}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "nobody", URL), "there is no tenant 'nobody'"),
        (
            ("add", "acme", "https://receiver.example/#here"),
            "the URL is 'https://receiver.example/#here'; http://HOST/... or https://HOST/... was wanted, without user,"
            " password or fragment",
        ),
        *(
            (("add", "acme", url), f"the URL is {url!r}: {sentence}")
            for url, sentence in {
                "ftp://b.example": "its scheme is 'ftp'; wanted http or https",
                "https://receiver.example:25/": "its port is 25; wanted 80, 443, or 1024 to 65535",
                "http://127.1/": "its host '127.1' is neither name nor address",
                "https://*.example/": "its host '*.example' has characters that neither a name nor an address has",
            }.items()
        ),
        (("list", "nobody"), "there is no tenant 'nobody'"),
        (("log", "msg_9"), "there is no message 'msg_9'"),
        (("log", "--endpoint", "hook_9"), "there is no webhook endpoint 'hook_9'"),
        *(
            (
                ("rotate", "hook_9", f"--hours={hours}"),
                f"the old secret would sign for {said} hours; 0 to 8784 were wanted",
            )
            for hours, said in {"inf": "inf", "1e30": "1e+30", "nan": "nan", "-1": "-1", "8785": "8785"}.items()
        ),
        (("remove", "hook_9"), "there is no webhook endpoint 'hook_9'"),
        (("rotate", "hook_9"), "there is no webhook endpoint 'hook_9'"),
        (("enable", "hook_9"), "there is no webhook endpoint 'hook_9'"),
        *(
            (
                ("disable", "hook_9", "--reason", reason),
                f"the reason is {reason!r}; 1 to 200 printable characters, not blanks alone, were wanted",
            )
            for reason in ("", " ")
        ),
        (("resend", "msg_9"), "there is no message 'msg_9'"),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunesmith("webhook", *arguments) == 1

    assert capsys.readouterr().err == f"tunesmith: {said}\n"

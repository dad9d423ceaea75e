"""Settings: what is read, and what an error says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from gateway import config
from gateway.__main__ import arm_failpoints, main
from gateway.config import Address, ConfigError

GOOD = {
    "TUNESMITH_DATABASE_URL": "sqlite:////tmp/tunes.db",
    "TUNESMITH_OBJECTS_URL": "file:///tmp/objects",
    "TUNESMITH_SIGNING_SECRET": "0123456789abcdef",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in GOOD.items():
        monkeypatch.setenv(key, value)


def test_three_settings_are_enough() -> None:
    settings = config.read()

    assert settings.http == Address("127.0.0.1", 8080)
    assert settings.lease_seconds == 45
    assert settings.public_url is None


@pytest.mark.parametrize("url", ["file:///data/objects", "s3://bucket", "s3://bucket/a/prefix"])
def test_objects_lie_in_a_folder_or_a_bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_OBJECTS_URL", url)

    assert config.read().objects_url.get_secret_value() == url


@pytest.mark.parametrize("url", ["gs://bucket", "file://host/folder", "file:objects", "/objects", "s3://b", "s3:///a"])
def test_objects_lie_nowhere_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_OBJECTS_URL", url)

    with pytest.raises(ConfigError, match=r"OBJECTS_URL=\(not shown\): wanted (file:///ABS|s3://BUCKET)"):
        config.read()


@pytest.mark.parametrize("name", ["outbound_allow", "outbound_deny"])
def test_networks_are_read_from_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TUNESMITH_{name.upper()}", "10.1.0.0/16, fd00::/8,192.0.2.7")

    networks = getattr(config.read(), name)

    assert [str(network) for network in networks] == ["10.1.0.0/16", "fd00::/8", "192.0.2.7/32"]


def test_weights_are_no_larger_than_s3_takes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_MAX_WEIGHTS_BYTES", "83886080001")
    in_folder = config.read().max_weights_bytes
    monkeypatch.setenv("TUNESMITH_OBJECTS_URL", "s3://bucket")

    with pytest.raises(ConfigError, match="TUNESMITH_MAX_WEIGHTS_BYTES=83886080001: wanted at most 83886080000 where"):
        config.read()
    monkeypatch.setenv("TUNESMITH_MAX_WEIGHTS_BYTES", "83886080000")

    assert (in_folder, config.read().max_weights_bytes) == (83886080001, 83886080000)


@pytest.mark.parametrize(
    "url", ["https://hub.example/mirror", "http://127.0.0.2:8080", "http://[::1]", "http://localhost"]
)
def test_hub_is_asked_over_tls_or_on_this_host(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_FETCH", "on")
    monkeypatch.setenv("TUNESMITH_HUB_URL", url + "/")

    assert config.read().hub_url == url


@pytest.mark.parametrize("key", ["HUB_URL", "PUBLIC_URL"])
def test_password_in_a_url_that_wants_none_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_FETCH", "on")
    monkeypatch.setenv(f"TUNESMITH_{key}", "https://user:hunter2@hub.example")

    with pytest.raises(ConfigError, match=f"TUNESMITH_{key}=.*without a user or password") as caught:
        config.read()

    assert "hunter2" not in str(caught.value)


def test_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_PUBLIC_URL", "")
    monkeypatch.setenv("TUNESMITH_HTTP", "")

    assert config.read().http.port == 8080


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("LEASE_SECONDS", "soon", "valid number"),
        ("HTTP", "8080", "wanted HOST:PORT"),
        ("GRPC", "localhost:99999", "wanted HOST:PORT"),
        ("PUBLIC_URL", "tunes.example", "wanted http"),
        ("PUBLIC_URL", "http://[", "wanted http"),
        (
            "HUB_URL",
            "http://hub.example",
            "wanted https://HOST[:PORT], or http://HOST[:PORT] of a loopback address",
        ),
        ("HUB_URL", "http://127.0.0.1.hub.example", "wanted https"),
        ("HUB_URL", "hub.example", "wanted https"),
        ("LOG_LEVEL", "loud", "'debug', 'info'"),
        ("REQUESTS_PER_SECOND", "0", "wanted 0.001 to 1000000"),
        ("REQUESTS_PER_SECOND", "1e-300", "wanted 0.001 to 1000000"),
        ("REQUESTS_PER_SECOND", "1000001", "wanted 0.001 to 1000000"),
        ("REQUESTS_PER_SECOND", "nan", "wanted 0.001 to 1000000"),
        ("DELETED_ASSET_DAYS", "nan", "wanted 1 and more"),
        ("LEFTOVER_SECONDS", "inf", "wanted 0 and more"),
        ("TRUSTED_PROXIES", "10.0.0.1,proxy", "'proxy': wanted addresses or networks"),
        ("MAX_PICTURE_BYTES", "12", "wanted 1024 and more"),
        ("HEARTBEAT_SECONDS", "40", "a third of TUNESMITH_LEASE_SECONDS=45"),
        ("OUTBOUND_ALLOW", "10.0.0.0/8,intranet", "wanted networks such as 10.1.0.0/16,fd00::/8"),
        ("OUTBOUND_ALLOW", "10.0.0.1/8", "has host bits set"),
    ],
)
def test_error_names_the_key_the_value_and_what_was_wanted(
    key: str, value: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TUNESMITH_{key}", value)

    with pytest.raises(ConfigError) as caught:
        config.read()

    message = str(caught.value)
    assert f"TUNESMITH_{key}" in message
    assert value in message
    assert wanted in message


@pytest.mark.parametrize("secret", [" " * 20, " \t" * 10, "x" * 32])
def test_secret_that_anybody_would_guess_is_refused(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_SIGNING_SECRET", secret)

    with pytest.raises(ConfigError, match=r"^TUNESMITH_SIGNING_SECRET=\(not shown\): wanted .* hard to guess"):
        config.read()


@pytest.mark.parametrize(
    ("http", "metrics"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234"),
        ("0.0.0.0:1234", "127.0.0.1:1234"),
        ("10.0.0.1:1234", "0.0.0.0:1234"),
        ("[::]:1234", "[::1]:1234"),
        ("127.0.0.1:9090", ""),  # where metrics are served unless something else is said
    ],
)
def test_two_servers_at_one_address_are_refused(http: str, metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HTTP", http)
    monkeypatch.setenv("TUNESMITH_METRICS", metrics)
    monkeypatch.setenv("TUNESMITH_TLS_KEY", "/k.pem")  # told beside it

    with pytest.raises(ConfigError) as caught:
        config.read()

    assert [line.split(": wanted ")[0] for line in str(caught.value).splitlines()] == [
        f"TUNESMITH_METRICS={metrics or http}",
        "TUNESMITH_TLS_KEY=/k.pem",
    ]
    assert f"wanted another address or port than TUNESMITH_HTTP={http}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("http", "metrics"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:1234", "127.0.0.1:1235"),
        ("127.0.0.1:1234", "127.0.0.2:1234"),
        ("127.0.0.1:1234", "[::]:1234"),
    ],
)
def test_two_servers_at_two_addresses_are_let_be(http: str, metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HTTP", http)
    monkeypatch.setenv("TUNESMITH_METRICS", metrics)

    settings = config.read()

    assert (str(settings.http), str(settings.metrics)) == (http, metrics)


def test_misspelt_setting_is_told_beside_the_one_that_it_was_meant_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_SIGNING_SECRET")
    monkeypatch.setenv("TUNESMITH_SIGNIN_SECRET", "0123456789abcdef")

    with pytest.raises(ConfigError) as caught:
        config.read()

    assert [line.split(" is ")[0] for line in str(caught.value).splitlines()] == [
        "TUNESMITH_SIGNING_SECRET",
        "TUNESMITH_SIGNIN_SECRET",
    ]
    assert "TUNESMITH_SIGNING_SECRET has" in str(caught.value)


def test_all_wrong_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_DATABASE_URL")
    monkeypatch.setenv("TUNESMITH_HTTP", "nowhere")

    with pytest.raises(ConfigError) as caught:
        config.read()

    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("TUNESMITH_DATABASE_URL is not set: wanted sqlite:")


def test_settings_that_do_not_go_together_are_told_with_those_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_SIGNING_SECRET")
    monkeypatch.setenv("TUNESMITH_HTTP", "nowhere")
    monkeypatch.setenv("TUNESMITH_HEARTBEAT_SECONDS", "40")
    monkeypatch.setenv("TUNESMITH_TLS_KEY", "/k.pem")
    monkeypatch.setenv("TUNESMITH_HUB_URL", "https://hub.example")

    with pytest.raises(ConfigError) as caught:
        config.read()

    assert sorted(line.split(": wanted")[0] for line in str(caught.value).splitlines()) == [
        "TUNESMITH_HEARTBEAT_SECONDS=40",
        "TUNESMITH_HTTP='nowhere'",
        "TUNESMITH_HUB_URL=https://hub.example",
        "TUNESMITH_SIGNING_SECRET is not set",
        "TUNESMITH_TLS_KEY=/k.pem",
    ]


def test_what_does_not_go_with_a_wrong_setting_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_LEASE_SECONDS", "soon")
    monkeypatch.setenv("TUNESMITH_HEARTBEAT_SECONDS", "40")

    with pytest.raises(ConfigError) as caught:
        config.read()

    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == ["TUNESMITH_LEASE_SECONDS"]


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("TLS_CERTIFICATE", "TUNESMITH_TLS_KEY"),
        ("TLS_KEY", "TUNESMITH_TLS_CERTIFICATE"),
        ("HTTP_TLS_CERTIFICATE", "TUNESMITH_HTTP_TLS_KEY"),
        ("HTTP_TLS_KEY", "TUNESMITH_HTTP_TLS_CERTIFICATE"),
        ("TLS_CLIENT_CA", "TUNESMITH_TLS_CERTIFICATE and TUNESMITH_TLS_KEY"),
    ],
)
def test_a_file_that_wants_another_says_which(setting: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TUNESMITH_{setting}", "/x.pem")

    with pytest.raises(ConfigError, match=f"^TUNESMITH_{setting}=/x.pem: wanted {wanted} with it$"):
        config.read()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:hush@h/x", "begins with 'mysql'; wanted sqlite"),
        ("hush", "cannot be read; wanted sqlite"),
        ("postgresql://u:hush@h:port/x", "cannot be read; wanted sqlite"),
        ("sqlite://", "names no file"),
        (
            "sqlite:///tmp/x.db",
            "names 'tmp/x.db', which is no absolute path; wanted .*: from this folder it led to sqlite:////.*/tmp/x.db$",
        ),
        ("sqlite://tmp/x.db", "names 'tmp/x.db', which is no absolute path"),
        ("sqlite://tmp//x.db", "names 'tmp//x.db', which is no absolute path"),
    ],
)
def test_database_is_a_file_by_its_absolute_path_or_postgresql(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)

    with pytest.raises(ConfigError, match=rf"^TUNESMITH_DATABASE_URL=\(not shown\): the database URL {said}") as caught:
        config.read()

    assert "hush" not in str(caught.value)


def test_help_and_version_are_answered_and_start_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TUNESMITH_DATABASE_URL")  # so that a start would fail
    codes = []
    for option in ("--help", "--version", "--nonsense"):
        monkeypatch.setattr("sys.argv", ["tunesmith-gateway", option])
        with pytest.raises(SystemExit) as ended:
            main()
        codes.append(ended.value.code)

    said = capsys.readouterr()
    assert codes == [0, 0, 2]
    assert "TUNESMITH_SIGNING_SECRET" in said.out
    assert said.out.splitlines()[-1] == version("tunesmith")
    assert "unrecognized arguments: --nonsense" in said.err


@pytest.mark.parametrize("key", ["SIGNING_SECRET", "OBJECTS_URL"])
def test_secret_is_never_printed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TUNESMITH_{key}", "hush-hush")

    with pytest.raises(ConfigError) as caught:
        config.read()

    assert f"TUNESMITH_{key}=(not shown)" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_settings_print_no_secret() -> None:
    assert "0123456789abcdef" not in repr(config.read())


def test_misspelt_key_is_found_and_a_trainers_is_left_alone() -> None:
    environment = {**GOOD, "TUNESMITH_LEASE_SECOND": "9", "TUNESMITH_TRAINER_ID": "t", "TUNESMITH_DATA": "/d"}

    assert config.misspelt(environment) == {"TUNESMITH_LEASE_SECOND": "TUNESMITH_LEASE_SECONDS"}


@pytest.mark.parametrize("text", ["127.0.0.1:8080", "[::1]:50051", "gateway.example:0"])
def test_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text


def test_misspelt_failpoint_ends_the_start_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_FAILPOINTS", "claim.after=kill")

    with pytest.raises(ConfigError, match=r"TUNESMITH_FAILPOINTS: claim\.after is no failpoint"):
        arm_failpoints()


@pytest.mark.parametrize(("name", "wanted"), [("gone/ready.json", "wanted a file in a folder that"), ("", "it is a")])
def test_ready_file_that_could_never_be_written_is_told_with_the_other_settings(
    tmp_path: Path, name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / name)
    monkeypatch.setenv("TUNESMITH_READY_FILE", path)
    monkeypatch.setenv("TUNESMITH_JUDGES", "0")

    with pytest.raises(ConfigError) as caught:
        config.read()

    told = {line.partition("=")[0]: line for line in str(caught.value).splitlines()}
    assert set(told) == {"TUNESMITH_READY_FILE", "TUNESMITH_JUDGES"}
    assert told["TUNESMITH_READY_FILE"].startswith(f"TUNESMITH_READY_FILE={path!r}: ")
    assert wanted in told["TUNESMITH_READY_FILE"]

"""Settings come from the environment, and a wrong one is named."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway.config import Settings as GatewaySettings
from trainer.__main__ import main
from trainer.supervisor import config
from trainer.supervisor.config import ConfigError, read


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_TRAINER_ID", "trainer-1")
    monkeypatch.setenv("TUNESMITH_TRAINER_TOKEN", "tt_secret")


def lines() -> list[str]:
    """What is told of a wrong environment."""
    with pytest.raises(ConfigError) as caught:
        read()
    return str(caught.value).splitlines()


def test_gateways_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", "one.example:50051, two.example:50051,")

    assert read().gateways == ("one.example:50051", "two.example:50051")


@pytest.mark.parametrize("value", ["one.example", "one.example:99999", ":1", ""])
def test_a_wrong_gateway_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", value)

    assert [line.partition(": ")[0] for line in lines()] == [f"TUNESMITH_GATEWAYS={value!r}"]


def test_every_wrong_gateway_is_named_and_no_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", "foo, a.example:1, bar:99999")

    assert "'foo' and 'bar:99999' cannot be read; wanted HOST:PORT" in lines()[0]


@pytest.mark.parametrize("folder", ["BASES", "CONFIGS"])
def test_folder_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    monkeypatch.setenv(f"TUNESMITH_{folder}", str(tmp_path / "gone"))

    assert lines() == [f"TUNESMITH_{folder}='{tmp_path / 'gone'}': Path does not point to a directory"]


@pytest.mark.parametrize("key", ["TLS_CERTIFICATE", "TLS_KEY"])
def test_certificate_and_key_want_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str) -> None:
    (tmp_path / "x.pem").touch()
    monkeypatch.setenv(f"TUNESMITH_{key}", str(tmp_path / "x.pem"))
    other = {"TLS_CERTIFICATE": "TLS_KEY", "TLS_KEY": "TLS_CERTIFICATE"}[key]

    assert lines() == [f"TUNESMITH_{key} is set: wanted TUNESMITH_{other} with it"]


def test_what_does_not_go_together_is_told_beside_what_is_wrong_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_TRAINER_TOKEN", "")
    monkeypatch.setenv("TUNESMITH_DEVICE", "abacus")
    monkeypatch.setenv("TUNESMITH_TLS_KEY", "/gone.pem")

    assert [line.partition(": ")[0] for line in lines()] == [
        "TUNESMITH_DEVICE='abacus'",
        "TUNESMITH_TLS_KEY='/gone.pem'",
        "TUNESMITH_TLS_KEY is set",
        "TUNESMITH_TRAINER_TOKEN is empty",
    ]


def test_token_in_anothers_place_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", "tt_secret")

    assert lines() == ["TUNESMITH_GATEWAYS=(not shown): wanted HOST:PORT, such as 127.0.0.1:50051, separated by commas"]


def test_misspelt_setting_is_told_beside_the_one_that_it_was_meant_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_TRAINER_ID")
    monkeypatch.setenv("TUNESMITH_TRIANER_ID", "trainer-1")

    assert [line.split(" is ")[0] for line in lines()] == ["TUNESMITH_TRAINER_ID", "TUNESMITH_TRIANER_ID"]


def test_a_gateways_settings_are_no_misspelt_ones_of_a_trainer() -> None:
    gateways = {f"TUNESMITH_{name.upper()}": "x" for name in GatewaySettings.model_fields}

    assert config.misspelt(gateways) == {}
    assert config.misspelt({"TUNESMITH_DTAA": "/d"}) == {"TUNESMITH_DTAA": "TUNESMITH_DATA"}


def test_help_and_version_are_answered_and_start_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TUNESMITH_TRAINER_ID")  # so that a start would fail
    codes = []
    for option in ("--help", "--version", "--nonsense"):
        monkeypatch.setattr("sys.argv", ["tunesmith-trainer", option])
        with pytest.raises(SystemExit) as ended:
            main()
        codes.append(ended.value.code)

    said = capsys.readouterr()
    assert codes == [0, 0, 2]
    assert "TUNESMITH_TRAINER_ID" in said.out
    assert said.out.splitlines()[-1] == version("tunesmith")
    assert "unrecognized arguments: --nonsense" in said.err


@pytest.mark.parametrize(
    ("address", "insecure", "plaintext"),
    [
        ("127.0.0.1:1", None, True),
        ("localhost:1", None, True),
        ("[::1]:1", None, True),
        ("gateway.example:1", None, False),
        ("10.0.0.1:1", None, False),
        ("10.0.0.1:1", "true", True),
        ("127.0.0.1:1", "false", False),
    ],
)
def test_tls_is_left_out_towards_loopback_only(
    monkeypatch: pytest.MonkeyPatch, address: str, insecure: str | None, plaintext: bool
) -> None:
    if insecure is not None:
        monkeypatch.setenv("TUNESMITH_INSECURE", insecure)

    assert read().is_plaintext(address) is plaintext


def test_a_token_or_a_certificate_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_TRAINER_TOKEN")

    assert lines() == ["TUNESMITH_TRAINER_TOKEN is empty: wanted a join token, or a client certificate"]


def test_the_token_is_not_shown() -> None:
    assert "tt_secret" not in repr(read())


def test_the_command_names_every_wrong_setting_and_shows_no_secret(tmp_path: Path) -> None:
    environment = {
        "PATH": "",
        "TUNESMITH_TRAINER_TOKEN": "tt_secret",
        "TUNESMITH_DEVICE": "abacus",
        "TUNESMITH_METRICS": "nowhere",
    }

    ended = subprocess.run(
        [sys.executable, "-m", "trainer"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    for key in ("TUNESMITH_TRAINER_ID", "TUNESMITH_DEVICE", "TUNESMITH_METRICS"):
        assert key in ended.stderr
    assert "tt_secret" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_supervisor_imports_no_torch() -> None:
    script = (
        "import sys, trainer.__main__; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'PIL')))"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_ready_file_that_could_never_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone, wanted = tmp_path / "gone", "wanted a file in a folder that is there and may be written to"
    monkeypatch.setenv("TUNESMITH_READY_FILE", str(gone / "ready.json"))
    of_gone = lines()
    monkeypatch.setenv("TUNESMITH_READY_FILE", str(tmp_path))

    assert of_gone == [f"TUNESMITH_READY_FILE='{gone}/ready.json': {wanted}, which {gone} is not"]
    assert lines() == [f"TUNESMITH_READY_FILE='{tmp_path}': wanted a file, and it is a folder"]

"""Settings come from the environment, and a wrong one is named."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.supervisor.config import Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_TRAINER_ID", "trainer-1")
    monkeypatch.setenv("TUNESMITH_TRAINER_TOKEN", "tt_secret")


def read() -> Settings:
    return Settings()  # type: ignore[call-arg]  # the environment has the rest


def test_gateways_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", "one.example:50051, two.example:50051,")

    assert read().gateways == ("one.example:50051", "two.example:50051")


@pytest.mark.parametrize("value", ["one.example", "one.example:99999", ":1", ""])
def test_a_wrong_gateway_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TUNESMITH_GATEWAYS", value)

    with pytest.raises(ValidationError, match="gateways"):
        read()


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

    with pytest.raises(ValidationError, match="join token"):
        read()


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

"""docs/deploying.md and deploy/compose.yaml say what the code reads and serves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from deploy import reference
from deploy.dockerfiles import dockerfile
from gateway.cli.__main__ import app
from gateway.config import Settings as GatewaySettings
from trainer.supervisor.config import Settings as TrainerSettings

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/deploying.md").read_text()
COMPOSE = (REPOSITORY / "deploy/compose.yaml").read_text()
SETTINGS: dict[str, type[BaseSettings]] = {"gateway": GatewaySettings, "trainer": TrainerSettings}


def variables(name: str) -> set[str]:
    return {f"TUNESMITH_{field.upper()}" for field in SETTINGS[name].model_fields}


def test_tables_are_as_the_code_would_write_them_now() -> None:
    assert reference.filled(PAGE) == PAGE, "run: python -m deploy.reference"


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_is_documented_with_a_meaning(name: str) -> None:
    rows = dict(
        re.findall(r"^\| `(TUNESMITH_\w+)` \|.*\| (.*) \|$", reference.settings_table(SETTINGS[name]), re.MULTILINE)
    )

    assert rows.keys() == variables(name)
    assert [variable for variable, meaning in rows.items() if not meaning] == []


def test_every_variable_that_the_page_names_exists() -> None:
    named = set(re.findall(r"TUNESMITH_[A-Z_]+", PAGE))

    assert named <= variables("gateway") | variables("trainer") | {"TUNESMITH_IMAGES"}  # of scripts/dockerfiles


def test_every_series_that_the_page_advises_on_is_served() -> None:
    named = set(re.findall(r"tunesmith_[a-z_]+", PAGE))
    served = {
        name
        for table in ("gateway metrics", "trainer metrics")
        for name in re.findall(r"`(tunesmith_\w+)`", reference.tables()[table])
    }

    assert named <= served


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_image_sets_only_what_its_process_reads(name: str) -> None:
    text = (REPOSITORY / f"Dockerfile.{name}").read_text()
    (environment,) = [one.rest for one in dockerfile.parse(text).stages[-1].instructions if one.name == "ENV"]
    values = {key: value for key, value in dockerfile.pairs(environment, {}) if key.startswith("TUNESMITH_")}

    assert values.keys() <= variables(name)
    required = {"signing_secret": "5e" * 16, "trainer_id": "t", "trainer_token": "tt_x"}
    given = {key.removeprefix("TUNESMITH_").lower(): value for key, value in values.items()}
    SETTINGS[name].model_validate(
        {key: value for key, value in required.items() if key in SETTINGS[name].model_fields} | given
    )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_image_exposes_the_ports_that_its_process_binds(name: str) -> None:
    instructions = dockerfile.parse((REPOSITORY / f"Dockerfile.{name}").read_text()).stages[-1].instructions
    (exposed,) = [one.rest.split() for one in instructions if one.name == "EXPOSE"]
    (environment,) = [one.rest for one in instructions if one.name == "ENV"]

    assert re.findall(r"=0\.0\.0\.0:(\d+)", environment) == exposed


def test_compose_file_sets_only_what_is_read_and_pins_its_images() -> None:
    assert set(re.findall(r"(TUNESMITH_\w+)", COMPOSE)) <= variables("gateway") | variables("trainer")
    assert [image for image in re.findall(r"image: (\S+)", COMPOSE) if not re.search(r":\d+\.\d+", image)] == []
    assert COMPOSE.count("<<: *hardened") == 2


def test_every_command_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`tunesmith (key|trainer-token) (\w+)", PAGE))

    assert {(group, verb) for group in ("key", "trainer-token") for verb in ("create", "list", "revoke")} == named
    for group, command in named:
        assert command in app[group]


def test_page_leads_only_to_what_is_there() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target

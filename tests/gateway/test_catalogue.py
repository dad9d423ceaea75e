"""The catalogue of public checkpoints: what ships, and what an operator's file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import catalogue
from gateway.config import ConfigError
from trainer.bases import tiny_shapes


def test_shipped_catalogue_has_the_three_checkpoints() -> None:
    sources = {entry.name: entry.source for entry in catalogue.gather(None)}

    assert sources["tunesmith:tiny-shapes"] == {"builtin": "tiny-shapes"}
    assert sources["octoai:default-sd15"]["hugging_face"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert len(sources["octoai:default-sdxl"]["commit"]) == 40


def test_shipped_builtin_is_named_by_its_digest() -> None:
    [entry] = [entry for entry in catalogue.gather(None) if entry.name == "tunesmith:tiny-shapes"]

    assert entry.sha256 == tiny_shapes.sha256()


def test_operators_entry_takes_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "more.toml"
    path.write_text(
        '[[checkpoint]]\nname = "octoai:default-sd15"\nengine = "image/stable-diffusion-v1-5"\nbuiltin = "ours"\n'
        '[[checkpoint]]\nname = "house:brand"\nengine = "image/stable-diffusion-v1-5"\nbuiltin = "brand"\n'
    )

    sources = {entry.name: entry.source for entry in catalogue.gather(path)}

    assert sources["octoai:default-sd15"] == {"builtin": "ours"}
    assert sources["house:brand"] == {"builtin": "brand"}
    assert len(sources) == 4


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[checkpoint]\n", "TOML|Expected|expected"),
        ("[[model]]\n", "unknown .'model'.; wanted"),
        ('[[checkpoint]]\nname = "plain"\nengine = "image/e"\nbuiltin = "b"\n', "name: String should match"),
        ('[[checkpoint]]\nname = "a:b"\nengine = "image/e"\n', "either builtin or hugging_face"),
        ('[[checkpoint]]\nname = "a:b"\nengine = "image/e"\nhugging_face = "o/r"\n', "wanted commit"),
        ('[[checkpoint]]\nname = "a:b"\nengine = "image/e"\nhugging_face = "o/r"\ncommit = "main"\n', "commit: String"),
        ('[[checkpoint]]\nname = "a:b"\nengine = "image/e"\nbuiltin = "b"\nsha256 = "f00"\n', "sha256: String"),
        (
            f'[[checkpoint]]\nname = "a:\\u0085"\nengine = "image/e"\nbuiltin = "b"\nsha256 = "{"0" * 64}"\n',
            "name: String",
        ),
        ('[[checkpoint]]\nname = "a:b"\nengine = "image/e"\nbuiltin = "b"\ncolour = "red"\n', "colour: Extra inputs"),
    ],
)
def test_wrong_entry_names_the_file_and_what_was_wanted(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "more.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=wanted) as caught:
        catalogue.gather(path)

    assert f"TUNESMITH_CATALOGUE={path}" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        catalogue.gather(tmp_path / "gone.toml")

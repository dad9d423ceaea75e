"""The hosted service's older Python SDK, `octoai-sdk`, unmodified. It reads answers more strictly than the newer one:
one asset outside its enums breaks a whole list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.servers.gateway import Account, Gateway

HERE = Path(__file__).parent / "octoai_sdk"
INSTALLED = Path(sys.prefix) / "octoai-sdk"  # by scripts/tools
FORMATS = {"webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}


@pytest.fixture(scope="module")
def shelf(gateway: Gateway, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Account:
    """A tenant with pictures of formats that the SDK has never heard of, and weights of every type."""
    account: Account = gateway.account()
    folder = tmp_path_factory.mktemp("formats")
    with account.client() as client:
        for name, kind in FORMATS.items():
            path = folder / f"{name}.{name}"
            with Image.open(pictures[2]) as picture:
                picture.resize((64, 64)).save(path, kind)
            client.upload(path)
        for kind in ("checkpoint", "lora", "textual_inversion", "vae", "latent"):
            data = {"asset_type": kind, "engine": "image/stable-diffusion-v1-5"}
            client.post("/v1/assets", json={"asset_type": kind, "name": kind, "data": data}).raise_for_status()
        for word in ("pt", "unknown"):
            data = {"asset_type": "lora", "engine": "image/stable-diffusion-v1-5", "file_format": word}
            client.post("/v1/assets", json={"asset_type": "lora", "name": word, "data": data}).raise_for_status()
    return account


@pytest.fixture(scope="module")
def said(shelf: Account, pictures: list[Path]) -> dict[str, Any]:
    """What every call of the SDK gave. Its endpoint ends in a slash, as its default does: it asks for //v1/tune."""
    paths = [str(INSTALLED), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    walk = subprocess.run(
        [sys.executable, str(HERE / "older.py"), f"{shelf.url}/", shelf.key, str(pictures[0])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert walk.returncode == 0, walk.stderr
    found: dict[str, Any] = json.loads(walk.stdout)
    return found


def test_it_is_the_older_sdk_that_is_asked(said: dict[str, Any]) -> None:
    assert said["version"] == "0.10.1"


def test_list_holds_formats_that_it_does_not_know(said: dict[str, Any]) -> None:
    shelf = said["shelf"]

    assert {name: shelf[name][0] for name in FORMATS} == dict.fromkeys(FORMATS, "ready")
    assert {shelf[name][1]["file_format"] for name in FORMATS} == {"unknown"}
    assert all(isinstance(size, int) and size > 0 for _, _, size in (shelf[name] for name in FORMATS))
    assert {"checkpoint", "lora", "textual_inversion", "vae", "latent"} <= set(shelf)
    assert [shelf[word][1].get("file_format") for word in ("pt", "unknown")] == ["pt", None]


def test_picture_is_uploaded_and_found_by_name_and_id(said: dict[str, Any], pictures: list[Path]) -> None:
    status, size, data = said["uploaded"]

    assert (status, said["waited"], size) == ("ready", "ready", pictures[0].stat().st_size)
    assert (data["file_format"], data["version"]) == ("png", "")
    assert said["found"] == [True, True]
    assert said["dropped"]


def test_its_filters_are_heard(said: dict[str, Any]) -> None:
    assert said["by filter"] == [["cat"], [], []]
    assert said["public"] == ["default-sd15", "default-sdxl"]
    assert said["listed"] == [[1, False, ["cats"]], [1, False, ["cats"]], [0, False, []]]


def test_completion_after_a_lost_put_is_a_client_error(said: dict[str, Any]) -> None:
    kind, status, body = said["lost upload"]

    assert (kind, status) == ("BadRequestException", 400)
    assert "upload" in body


def test_created_tune_is_read_in_its_strict_types(said: dict[str, Any]) -> None:
    tune = said["created"]

    assert tune["status"] == "pending"
    assert tune["description"] == ""
    assert tune["details"]["seed"] == 2**32 - 1
    assert tune["details"]["files"][0]["caption"] == "a cat, sks"
    assert tune["details"]["base_checkpoint"]["engine"] == "image/stable-diffusion-v1-5"
    assert said["got"]


def test_tune_is_cancelled_twice_and_deleted(said: dict[str, Any]) -> None:
    assert said["cancelled"] == ["cancelled", "cancelled"]
    assert said["deleted"] is None
    assert said["unknown tune"][:2] == ["NotFoundException", 404]


def test_its_own_errors_are_raised(said: dict[str, Any]) -> None:
    kind, status, body = said["wrong tune"]

    assert (kind, status) == ("ApiException", 422)
    [violation] = body["detail"]
    loc = [json.loads(step) for step in violation["loc"]]  # the SDK writes each step as JSON
    assert loc == ["body", "details", "files", 0, "file_id"]
    assert said["wrong key"][:2] == ["UnauthorizedException", 401]


def test_weights_that_are_a_picture_are_rejected_without_breaking_it(said: dict[str, Any]) -> None:
    assert said["weights"] == "rejected"

"""The hosted service's TypeScript SDK, `@octoai/sdk` from npm, unmodified, in Node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.servers.gateway import Account, Gateway

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def account(gateway: Gateway) -> Account:
    return gateway.account()


@pytest.fixture(scope="module")
def said(account: Account, pictures: list[Path]) -> dict[str, Any]:
    """What every call of the SDK gave."""
    arguments = [account.url, account.key, str(pictures[0])]
    node = subprocess.run(
        ["node", "octoai.mjs", *arguments], cwd=HERE / "node", capture_output=True, text=True, timeout=120
    )
    assert node.returncode == 0, node.stderr
    found: dict[str, Any] = json.loads(node.stdout)
    return found


def test_picture_is_uploaded_found_listed_and_deleted(
    said: dict[str, Any], account: Account, pictures: list[Path]
) -> None:
    asset = said["asset"]

    assert said["completed"] == {}
    assert (asset["status"], asset["sizeBytes"], asset["tenantUuid"]) == (
        "ready",
        pictures[0].stat().st_size,
        account.tenant_id,
    )
    assert asset["data"] == {"assetType": "file", "fileFormat": "png"}
    assert (said["transfer"], said["downloaded"]) == ("presigned-url", True)
    assert [one["id"] for one in said["listed"]["data"]] == [asset["id"]]
    assert (said["listed"]["total"], said["listed"]["hasMore"]) == (1, False)
    assert said["dropped"]["id"] == asset["id"]


def test_catalogue_is_read_and_has_nothing_to_transfer(said: dict[str, Any]) -> None:
    assert said["catalogue"]["transferApi"] == {"type": "none"}
    assert said["catalogue"]["asset"]["data"]["engine"] == "image/stable-diffusion-v1-5"


def test_its_own_upload_wants_credentials_of_a_cloud_and_says_so(said: dict[str, Any]) -> None:
    assert said["upload"] == ["Error", None, "Unexpected transfer API type presigned-url"]


def test_create_whose_answer_is_lost_twice_makes_one_tune(said: dict[str, Any]) -> None:
    retried = said["retried"]

    assert (retried["asked"], retried["replayed"], retried["total"]) == (3, "true", 1)
    assert retried["tune"]["name"] == "cats"
    assert retried["tune"]["details"]["tuneType"] == "lora_tune"
    assert retried["tune"]["outputLoraIds"] == []


def test_taken_name_with_another_body_stays_a_conflict_however_often_it_asks(said: dict[str, Any]) -> None:
    kind, status, body = said["taken"]["error"]

    assert (kind, status, body["code"]) == ("OctoAIError", 409, "ALREADY_EXISTS")
    assert said["taken"]["asked"] == 3


def test_tune_is_listed_cancelled_twice_and_deleted(said: dict[str, Any]) -> None:
    assert said["filtered"] == 1
    assert said["cancelled"] == ["cancelled", "cancelled"]
    assert said["deleted"] == {}
    assert said["gone"][:2] == ["OctoAIError", 404]


def test_its_own_errors_are_thrown(said: dict[str, Any]) -> None:
    kind, status, body = said["wrong"]

    assert (kind, status) == ("UnprocessableEntityError", 422)
    places = [violation["loc"] for violation in body["detail"]]
    assert places == [["body", "details", "seed"], ["body", "details", "steps"]]
    assert said["stranger"][:2] == ["OctoAIError", 401]

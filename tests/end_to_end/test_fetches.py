"""A gateway dies amid a fetch, and the next one brings the picture: real processes on one PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from gateway.fetches import LEASE
from store.database import Database
from tests.servers.gateway import Gateway
from tests.servers.site import LIMIT, Site, apart


def test_picture_is_fetched_though_its_gateway_was_killed(
    postgres_url: str, tmp_path: Path, pictures: list[Path]
) -> None:
    site = Site()
    site.answers["/cat.png"] = 200, {}, pictures[0].read_bytes()
    site.held["/cat.png"] = asyncio.Event()
    settings = {
        "TUNESMITH_FETCH": "on",
        "TUNESMITH_OUTBOUND_ALLOW": "127.0.0.0/8",
        "TUNESMITH_OBJECTS_URL": (tmp_path / "objects").as_uri(),
    }
    with apart(site) as (home, beside):
        url = f"{home}/cat.png"
        body = {"asset_type": "file", "name": "cat", "url": f"{url}?key=secret", "data": {"asset_type": "file"}}
        with Gateway(postgres_url, tmp_path / "a", settings) as first:
            account = first.account()
            with account.client() as client:
                created = client.post("/v1/assets", json=body).raise_for_status().json()
            beside(site.was_asked("/cat.png"))
            first.kill()
            first_log = first.log()
        asyncio.run(passed(postgres_url, LEASE + 1))
        beside(site.let("/cat.png"))
        with Gateway(postgres_url, tmp_path / "b", settings) as second:
            headers = {"Authorization": f"Bearer {account.key}"}
            with httpx.Client(base_url=second.ready["http"], headers=headers) as client:
                asset = ended(client, created["asset"]["id"])
                bytes_url = client.get(f"/v1/assets/{asset['id']}").json()["transfer_api"]["get_url"]
                content = httpx.get(bytes_url).content
            second_log = second.log()

    assert (created["asset"]["status"], created["transfer_api"]) == ("ready_to_upload", {"type": "none"})
    assert (asset["status"], asset["url"], content) == ("ready", url, pictures[0].read_bytes())
    assert "secret" not in first_log + second_log


def ended(client: httpx.Client, asset_id: str) -> dict[str, str]:
    """The asset once it is judged; nothing tells, so that callers ask again and again."""
    deadline = time.monotonic() + LIMIT
    while (asset := client.get(f"/v1/assets/{asset_id}").json()["asset"])["status"] == "ready_to_upload":
        assert time.monotonic() < deadline, asset
        time.sleep(0.05)
    found: dict[str, str] = asset
    return found


async def passed(url: str, seconds: float) -> None:
    """So much time, by the database's clock."""
    database = await Database.open(url, wakeups=False)
    await database.move_clock(seconds)
    await database.close()

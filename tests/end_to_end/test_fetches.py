"""A gateway dies amid a fetch, and the next one brings the picture: real processes on one PostgreSQL."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.fetches import LEASE
from store.database import Database
from tests.servers.gateway import Gateway

LIMIT = 60.0  # seconds that a busy machine may take for what one should


class Site(http.server.ThreadingHTTPServer):
    """Gives one file, and none before it is let."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = content
        self.asked = threading.Semaphore(0)
        self.let = threading.Event()

    def handle_error(self, request: object, address: object) -> None:
        """Who asked may be dead."""


class Answer(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.release()
        self.server.let.wait(LIMIT)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def site(pictures: list[Path]) -> Iterator[Site]:
    with Site(pictures[0].read_bytes()) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.let.set()
        made.shutdown()
        thread.join()


def test_picture_is_fetched_though_its_gateway_was_killed(postgres_url: str, tmp_path: Path, site: Site) -> None:
    settings = {
        "TUNESMITH_FETCH": "on",
        "TUNESMITH_OUTBOUND_ALLOW": "127.0.0.0/8",
        "TUNESMITH_OBJECTS_URL": (tmp_path / "objects").as_uri(),
    }
    url = f"http://127.0.0.1:{site.server_port}/cat.png"
    body = {"asset_type": "file", "name": "cat", "url": f"{url}?key=secret", "data": {"asset_type": "file"}}

    with Gateway(postgres_url, tmp_path / "a", settings) as first:
        account = first.account()
        with account.client() as client:
            created = client.post("/v1/assets", json=body).raise_for_status().json()
        assert site.asked.acquire(timeout=LIMIT)
        first.kill()
        first_log = first.log()
    asyncio.run(passed(postgres_url, LEASE + 1))
    site.let.set()
    with Gateway(postgres_url, tmp_path / "b", settings) as second:
        with httpx.Client(base_url=second.ready["http"], headers={"Authorization": f"Bearer {account.key}"}) as client:
            asset = ended(client, created["asset"]["id"])
            bytes_url = client.get(f"/v1/assets/{asset['id']}").json()["transfer_api"]["get_url"]
            content = httpx.get(bytes_url).content
        second_log = second.log()

    assert (created["asset"]["status"], created["transfer_api"]) == ("ready_to_upload", {"type": "none"})
    assert (asset["status"], asset["url"], content) == ("ready", url, site.content)
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

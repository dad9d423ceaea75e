"""The dashboard during a real tune: what a trainer really tells is what the page can show."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.servers.browser import chromium
from tests.servers.service import Client, Service

LIMIT = 120_000.0  # milliseconds that the tune may take


def test_a_real_tune_is_shown_to_its_end(service: Service, client: Client, pictures: list[Path]) -> None:
    files = [client.upload(path) for path in pictures[:2]]
    with chromium() as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(service.ready["http"])
        page.get_by_label("API key").fill(service.ready["api_key"])
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("heading", name="Tunes", exact=True)).to_be_visible()

        tune = client.tune("watched", files, steps=12)
        page.goto(f"{service.ready['http']}/#{tune['id']}")

        expect(page.locator(".tune .badge")).to_have_text("succeeded", timeout=LIMIT)
        expect(page.get_by_role("log")).to_contain_text("Steps 1–12, loss")
        expect(page.get_by_role("figure").first).to_contain_text("Step 12 of 12")
        expect(page.get_by_text("2 pictures: 2 good")).to_be_visible()
        expect(page.locator(".recipe").first).to_contain_text("rank")
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Download").click()
        lora = client.get(f"/v1/tune/{tune['id']}").json()["output_lora_ids"][0]
        assert Path(downloading.value.path()).read_bytes() == client.download(lora)
        assert complaints == []

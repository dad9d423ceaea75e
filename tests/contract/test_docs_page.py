"""/docs in a real browser: it shows every operation, and asks nobody but this server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Request

from tests.servers.browser import chromium
from tests.servers.contract import Contract


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as browser:
        yield browser.new_page()


def test_page_shows_every_operation_and_asks_nobody_else(page: Page, url: str, contract: Contract) -> None:
    asked: list[Request] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    page.goto(f"{url}/docs")
    page.wait_for_selector("article#CreateTune")

    assert complaints == []
    assert {request.url.removeprefix(url) for request in asked if not request.url.startswith("data:")} == {
        "/docs",
        "/page/house.css",
        "/page/docs.css",
        "/page/docs.js",
        "/page/element.js",
        "/openapi.json",
    }
    shown = {article.get_attribute("id") for article in page.locator("article").all()}
    assert shown == contract.operations().keys()
    assert page.locator("article#WatchTune .path").inner_text() == "/v1/tune/{id}/events"
    assert page.locator("#version").inner_text() == contract.document["info"]["version"]


def test_a_bodys_keys_unfold_down_to_the_last_with_their_rules(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")
    body = page.locator("article#CreateTune > details").first

    body.locator("summary").first.click()
    details = body.locator("> dl > div", has=page.locator("> dt .name", has_text="details"))
    details.locator("summary").first.click()

    name, steps = (body.locator("dt", has=page.locator(".name", has_text=key)).first for key in ("name", "steps"))
    assert all(part in name.inner_text() for part in ("string", "1 to 128 characters", "required"))
    assert all(part in steps.inner_text() for part in ("integer", "≥ 1", "≤ 100000", "required"))
    assert '"steps": 1' in page.locator("article#CreateTune pre").inner_text()


def test_filter_leaves_what_it_finds(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector("article#CreateTune")

    page.fill("#filter", "complete-upload")

    shown = [article.get_attribute("id") for article in page.locator("article:visible").all()]
    assert shown == ["CompleteUpload"]

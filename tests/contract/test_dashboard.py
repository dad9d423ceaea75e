"""The dashboard at / in a real browser, on a real gateway with a trainer that does what the test says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from tests.servers.browser import LIMIT, chromium
from tests.servers.daemon import Daemon
from tests.servers.gateway import Account, Gateway
from tests.servers.scripted import ScriptedTrainer
from tests.servers.service import Client
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

Answer = TypeVar("Answer")

NASTY = "<img src=x onerror=alert(1)>"
RECIPE = {"version": 2, "seed": 1234, "hyperparameters": {"rank": 4, "alpha": 8.0}, "environment": {"device": "cpu"}}


def apart(call: Callable[[], Answer]) -> Answer:
    """Calls what runs an event loop of its own: the browser holds this thread's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@pytest.fixture(scope="module")
def gateway(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One whose tunes a test may let its trainer have."""
    folder = tmp_path_factory.mktemp("dashboard")
    path = shutil.copy(sqlite_template, folder / "tunesmith.db")
    with Gateway(f"sqlite:///{path}", folder / "gateway") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def browser(gateway: Gateway) -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def account(gateway: Gateway) -> Iterator[Account]:
    """A tenant of its own. Its tunes go with the test, so that no later trainer is given them."""
    account = apart(gateway.account)
    yield account
    with account.client() as client:
        while tunes := client.get("/v1/tunes").json()["data"]:
            for tune in tunes:
                assert client.delete(f"/v1/tune/{tune['id']}").status_code == 200


@pytest.fixture
def client(account: Account) -> Iterator[Client]:
    with account.client() as client:
        yield client


@pytest.fixture
def picture(client: Client, tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    return client.upload(path, name="a teal square")


@pytest.fixture
def trainer(gateway: Gateway) -> Iterator[ScriptedTrainer]:
    with ScriptedTrainer(gateway.ready["grpc"], gateway.trainer_token) as trainer:
        yield trainer


@dataclass
class Visitor:
    """Somebody with a page of the dashboard."""

    page: Page
    account: Account
    asked: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def enter(self, key: str | None = None) -> None:
        """Gives the key."""
        self.page.get_by_label("API key").fill(key or self.account.key)
        self.page.get_by_role("button", name="Show").click()

    def open(self, tune_id: str = "") -> None:
        """Comes with the key to a tune, or to the list."""
        self.page.goto(f"{self.account.url}/#{tune_id}")
        self.enter()
        expect(self.page.get_by_role("button", name="Forget key")).to_be_visible()

    def look(self, *, elsewhere: bool = False) -> None:
        """Looks at another tab, or at this one again, which then asks at once."""
        self.page.evaluate(
            """elsewhere => {
                Object.defineProperty(document, "hidden", { value: elsewhere, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            elsewhere,
        )

    @property
    def rows(self) -> Locator:
        """The list's."""
        return self.page.locator(".tunes tbody tr")

    @property
    def log(self) -> Locator:
        """Lines of the tune's log."""
        return self.page.get_by_role("log").get_by_role("listitem")

    @property
    def loss(self) -> Locator:
        """The curve."""
        return self.page.get_by_role("figure").filter(has=self.page.get_by_role("heading", name="Loss"))

    def told_steps(self) -> list[int]:
        """The steps that the curve has, where they are few."""
        details = self.loss.locator("details")
        if details.get_attribute("open") is None:
            details.locator("summary").click()
        expect(details.locator("tbody tr").first).to_be_visible()
        return [int(cell) for cell in details.locator("tbody td:first-child").all_inner_texts()]


@pytest.fixture
def visitor(browser: Browser, account: Account) -> Iterator[Visitor]:
    """A page of its own; at the end it has complained of nothing, asked nobody else, and shown its key in no URL."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(LIMIT)
    visitor = Visitor(page, account)
    page.on("request", lambda request: visitor.asked.append(request))
    page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    page.on("console", lambda message: visitor.complaints.append(message.text))
    page.on("dialog", lambda dialog: visitor.complaints.append(f"dialog: {dialog.message}"))
    yield visitor
    context.close()
    # Of an answer that is no success the browser itself says so.
    assert [text for text in visitor.complaints if not text.startswith("Failed to load resource")] == []
    urls = [request.url for request in visitor.asked if not request.url.startswith("data:")]
    assert [url for url in urls if not url.startswith(f"{account.url}/")] == []
    assert [url for url in urls if account.key in url] == []


def test_a_key_that_may_not_is_said_beside_the_field(visitor: Visitor, gateway: Gateway) -> None:
    page = visitor.page
    page.goto(f"{visitor.account.url}//")
    field, wrong = page.get_by_label("API key"), page.locator("#wrong")
    writer = apart(lambda: gateway.key_of(visitor.account, "tune:write"))

    visitor.enter("ts_nobody")
    expect(wrong).to_have_text("This key is not known here.")
    expect(field).to_be_focused()
    visitor.enter("schlüssel")
    expect(wrong).to_contain_text("no letters beyond ASCII")
    visitor.enter(writer)
    expect(wrong).to_contain_text("lacks the scope tune:read")
    visitor.enter()

    expect(page.get_by_role("heading", name="No tunes yet")).to_be_visible()
    assert page.url == f"{visitor.account.url}/"
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("link", name="How a tune is made").click()
    expect(page.locator("article#CreateTune")).to_be_in_viewport()
    page.get_by_role("link", name="Your tunes").click()
    expect(page.get_by_role("heading", name="No tunes yet")).to_be_visible()  # the tab has kept the key


def test_forgotten_key_takes_with_it_all_that_was_shown(visitor: Visitor, client: Client, picture: str) -> None:
    tune = client.tune("my-cat", [picture])
    visitor.open(tune["id"])
    expect(visitor.page.get_by_role("heading", name="my-cat")).to_be_visible()
    expect(visitor.page).to_have_title("pending: my-cat · Tunesmith")

    visitor.page.get_by_role("button", name="Forget key").click()

    expect(visitor.page.get_by_label("API key")).to_be_focused()
    expect(visitor.page).to_have_title("Tunesmith")
    assert "my-cat" not in visitor.page.content()
    assert visitor.page.evaluate("sessionStorage.length") == 0
    assert visitor.page.url == f"{visitor.account.url}/"


def test_pending_tunes_say_their_place_and_why_they_wait(visitor: Visitor, client: Client, picture: str) -> None:
    client.tune(NASTY, [picture], steps=300)
    client.tune("second", [picture], steps=40)

    visitor.open()

    expect(visitor.rows).to_have_count(2)
    second, first = (row.inner_text() for row in visitor.rows.all())
    reason = "no connected trainer offers image/stable-diffusion-v1-5"
    for row, parts in (
        (first, (NASTY, "pending", "0 / 300", f"place 1 in the queue: {reason}", "tiny-shapes", "just now")),
        (second, ("second", "pending", "0 / 40", f"place 2 in the queue: {reason}", "tiny-shapes", "just now")),
    ):
        assert [part for part in parts if part not in row] == []
    assert visitor.page.locator("img").count() == 0


def test_list_changes_in_place_and_the_focus_stays(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    tune = client.tune("first", [picture], steps=40)
    visitor.open()
    link = visitor.page.get_by_role("link", name="first")
    link.focus()
    attempt = trainer.take()
    attempt.tell("training", [0.5] * 10)

    client.tune("second", [picture])
    next(event for event in client.events(tune["id"]) if event["event"]["type"] == "metrics")
    visitor.look()

    expect(visitor.rows).to_have_count(2)
    expect(visitor.rows.last).to_contain_text("10 / 40")
    expect(visitor.rows.last).to_contain_text("8 s to go")
    expect(link).to_be_focused()


def test_a_page_holds_25_and_a_name_finds_one(visitor: Visitor, client: Client, picture: str) -> None:
    for number in range(26):
        client.tune(f"tune-{number}", [picture])
    page = visitor.page

    visitor.open()
    expect(visitor.rows).to_have_count(25)
    expect(page.get_by_text("1–25 of 26")).to_be_visible()
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_text("26–26 of 26")).to_be_visible()
    assert visitor.rows.locator("a").all_inner_texts() == ["tune-0"]
    page.get_by_role("link", name="tune-0").click()
    page.get_by_role("link", name="← Tunes").click()
    expect(page).to_have_url(f"{visitor.account.url}/#page=2")
    expect(page.get_by_text("26–26 of 26")).to_be_visible()
    expect(page.get_by_role("link", name="tune-0")).to_be_focused()
    page.get_by_label("Name").fill("tune-7")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1–1 of 1")).to_be_visible()
    assert visitor.rows.locator("a").all_inner_texts() == ["tune-7"]
    page.get_by_label("Name").fill("tune")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="No tune has the name “tune”")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="No tune has the name “tune”")).to_be_visible()


def test_curve_and_log_grow_while_the_page_is_open(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    tune = client.tune("my-cat", [picture], steps=20, hyperparameters={"rank": 4})
    attempt = trainer.take()
    visitor.open(tune["id"])
    expect(visitor.log.last).to_contain_text("Attempt 1 begins")
    visitor.page.evaluate("window.sameDocument = true")

    attempt.resolve(RECIPE)
    attempt.tell("training", [0.5, 0.4, 0.3, 0.2, 0.1])
    expect(visitor.loss).to_contain_text(
        "Step 5 of 20: 0.1, mean of the last 5 told 0.3. First 0.5, least 0.1 at step 5."
    )
    expect(visitor.log.last).to_contain_text("Steps 1–5, loss 0.1")
    expect(visitor.page).to_have_title("25% my-cat · Tunesmith")
    before = visitor.loss.locator("path.mean").get_attribute("d")
    attempt.tell("training", [0.2, 0.3], first=6)

    expect(visitor.loss).to_contain_text("Step 7 of 20: 0.3")
    expect(visitor.log.last).to_contain_text("Steps 1–7, loss 0.3")
    assert visitor.loss.locator("path.mean").get_attribute("d") != before
    assert visitor.told_steps() == list(range(1, 8))
    visitor.loss.get_by_role("img").hover()
    expect(visitor.loss.locator(".readout")).to_have_text("Step 4: 0.2, mean 0.35")
    linear = visitor.loss.locator("path.raw").get_attribute("d")
    visitor.loss.get_by_label("Log scale").check()
    assert visitor.loss.locator("path.raw").get_attribute("d") != linear
    for words in ("training", "7 / 20", "4 steps/s", "rank •", "1234"):
        expect(visitor.page.locator(".tune")).to_contain_text(words)
    attempt.finish(b"the bytes of a lora")
    expect(visitor.page.locator(".tune .badge")).to_have_text("succeeded")
    assert visitor.page.evaluate("window.sameDocument")


def test_log_follows_who_is_at_its_end_and_leaves_who_reads_above(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    tune = client.tune("my-cat", [picture], steps=20)
    attempt = trainer.take()

    def warn(*said: str) -> None:
        for words in said:
            attempt.log(warning=pb.Warning(reason="CAPTION_CUT", details=words))
        expect(visitor.log.last).to_contain_text(said[-1])

    def above() -> list[int]:
        """Pixels of the log that are above what is seen, and below it."""
        found: list[int] = visitor.page.get_by_role("log").evaluate(
            "log => [log.scrollTop, log.scrollHeight - log.scrollTop - log.clientHeight].map(Math.round)"
        )
        return found

    visitor.open(tune["id"])
    warn(*(f"line {number}" for number in range(25)))
    at_end = above()
    warn("one more")
    followed = above()
    visitor.page.get_by_role("log").evaluate("log => log.scrollTop = 30")
    warn("another one")

    assert at_end[0] > 0
    assert followed[0] > at_end[0]
    assert (at_end[1], followed[1]) == (0, 0)
    assert above()[0] == 30


def test_a_later_attempts_steps_take_the_place_of_the_earlier_ones(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    tune = client.tune("my-cat", [picture], steps=20)
    first = trainer.take()
    first.tell("training", [0.5] * 8)
    visitor.open(tune["id"])
    expect(visitor.loss).to_contain_text("Step 8 of 20: 0.5")

    first.fail("OUT_OF_MEMORY", "the GPU was full", retryable=True)
    trainer.take().tell("training", [0.25] * 2, first=5)

    expect(visitor.loss).to_contain_text("Step 6 of 20: 0.25")
    assert visitor.told_steps() == [1, 2, 3, 4, 5, 6]
    expect(visitor.page.locator(".tune .facts")).to_contain_text([re.compile("Attempts\n?2")])


def test_a_gateway_that_dies_amid_the_stream_costs_no_event(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer, gateway: Gateway
) -> None:
    tune = client.tune("my-cat", [picture], steps=20)
    attempt = trainer.take()
    attempt.log(warning=pb.Warning(reason="CAPTION_CUT", details="said before"))
    attempt.tell("training", [0.5, 0.4])
    visitor.open(tune["id"])
    expect(visitor.loss).to_contain_text("Step 2 of 20")
    banner = visitor.page.get_by_role("status").filter(has_text="The gateway does not answer.")

    gateway.kill()
    expect(banner).to_be_visible()
    expect(banner).to_contain_text(re.compile(r"Trying again in \d+ s\."))
    assert "Step 2 of 20" in visitor.loss.inner_text()
    gateway.environment["TUNESMITH_HTTP"] = gateway.ready["http"].removeprefix("http://")
    Daemon.start(gateway)
    attempt.go_on(gateway.ready["grpc"])
    attempt.tell("training", [0.3, 0.2], first=3)
    visitor.page.locator("#banner button").dispatch_event("click")  # it may have gone by itself just now
    expect(visitor.loss).to_contain_text("Step 4 of 20")
    attempt.log(warning=pb.Warning(reason="CAPTION_CUT", details="said after"))

    expect(visitor.log.last).to_contain_text("said after")
    expect(banner).to_be_hidden()
    tags = [line.inner_text().split("\n")[1] for line in visitor.log.all()]
    assert tags == ["QUEUED", "ASSIGNED", "STARTED", "CAPTION_CUT", "STEPS", "CAPTION_CUT"]
    assert visitor.told_steps() == [1, 2, 3, 4]
    resumed = [request.headers.get("last-event-id") for request in visitor.asked if request.url.endswith("/events")]
    assert resumed[0] is None
    assert {*resumed[1:]} == {"5"}


def test_a_stream_that_falls_silent_is_asked_for_anew(visitor: Visitor, client: Client, picture: str) -> None:
    tune = client.tune("my-cat", [picture])
    page = visitor.page
    page.clock.install()
    visitor.open(tune["id"])
    expect(visitor.log).to_have_count(1)

    with page.expect_request("**/events") as again:
        page.clock.fast_forward(46_000)  # the gateway says something every fifteen seconds

    assert again.value.headers["last-event-id"] == "1"
    expect(page.locator("#banner")).to_be_hidden()


def test_a_tab_that_nobody_sees_holds_no_stream(visitor: Visitor, client: Client, picture: str) -> None:
    tune = client.tune("my-cat", [picture])
    page = visitor.page
    page.clock.install()
    visitor.open(tune["id"])
    expect(visitor.log).to_have_count(1)

    visitor.look(elsewhere=True)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.clock.fast_forward(11_000)
    client.post(f"/v1/tune/{tune['id']}/cancel", json={})
    with page.expect_request("**/events") as again:
        visitor.look()

    assert again.value.headers["last-event-id"] == "1"
    expect(visitor.log).to_have_count(2)
    expect(page.locator(".tune .badge")).to_have_text("cancelled")


def test_a_stream_that_ends_with_an_error_is_asked_for_anew(visitor: Visitor, client: Client, picture: str) -> None:
    tune = client.tune("my-cat", [picture])
    page = visitor.page
    ending = '\n{"error": {"detail": "this gateway goes away", "code": "UNAVAILABLE", "reason": "SHUTTING_DOWN"}}\n'

    page.route("**/events", lambda route: route.fulfill(body=ending), times=1)
    visitor.open(tune["id"])

    expect(visitor.log).to_have_count(1)
    expect(visitor.log).to_contain_text("Queued")
    expect(page.locator("#banner")).to_be_hidden()


def test_cancel_by_the_keyboard_alone(visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer) -> None:
    tune = client.tune("my-cat", [picture], steps=20)
    attempt = trainer.take()
    visitor.open(tune["id"])
    keyboard, page = visitor.page.keyboard, visitor.page
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    expect(cancel).to_be_visible()

    tab_to(page, cancel)
    keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Cancel my-cat?")).to_be_visible()
    expect(page.get_by_role("button", name="Let it go on")).to_be_focused()
    keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(cancel).to_be_focused()
    keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Cancel the tune"))
    keyboard.press("Enter")

    expect(page.get_by_role("button", name="Cancelling …")).to_be_disabled()
    attempt.stop()
    expect(page.locator(".tune .badge")).to_have_text("cancelled")
    expect(page.get_by_role("button", name=re.compile("Cancel"))).to_be_hidden()
    expect(page.locator("#live")).to_have_text("my-cat is cancelled")
    assert client.get(f"/v1/tune/{tune['id']}").json()["status"] == "cancelled"


def test_delete_leads_back_to_the_list(visitor: Visitor, client: Client, picture: str) -> None:
    tune = client.tune("my-cat", [picture])
    visitor.open(tune["id"])
    page = visitor.page

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the tune").click()

    expect(page.get_by_text("my-cat was deleted.")).to_be_visible()
    expect(page.get_by_role("heading", name="No tunes yet")).to_be_visible()
    assert client.get(f"/v1/tune/{tune['id']}").status_code == 404
    page.goto(f"{visitor.account.url}/#{tune['id']}")
    expect(page.get_by_role("alert").filter(has_text=f"There is no tune {tune['id']}")).to_be_visible()


def test_a_refusal_is_told_in_words_with_its_request(
    visitor: Visitor, client: Client, picture: str, gateway: Gateway
) -> None:
    tune = client.tune("my-cat", [picture])
    reader = apart(lambda: gateway.key_of(visitor.account, "tune:read"))
    page = visitor.page
    page.goto(f"{visitor.account.url}/#{tune['id']}")
    visitor.enter(reader)

    page.get_by_role("button", name="Delete").click()
    with page.expect_response(lambda response: response.request.method == "DELETE") as refused:
        page.get_by_role("button", name="Delete the tune").click()

    words = f"This API key lacks the scope tune:write. (request {refused.value.headers['x-request-id']})"
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(words)
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("button", name="Delete")).to_be_focused()


def test_finished_tune_is_told_from_its_log_and_its_lora_is_there(
    visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    tune = client.tune("my-cat", [picture], steps=3)
    attempt = trainer.take()
    attempt.resolve(RECIPE)
    attempt.log(verdict=pb.Verdict(file_id=picture, accepted=True, reason="CAPTION_CUT", details="91 tokens"))
    attempt.tell("training", [0.5, 0.3, 0.1])
    attempt.finish(b"the bytes of a lora")

    visitor.open(tune["id"])
    page = visitor.page
    expect(visitor.log.last).to_contain_text("Succeeded")
    page.get_by_text("1 picture: 1 good").click()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download").click()

    assert downloading.value.suggested_filename == "my-cat.safetensors"
    assert Path(downloading.value.path()).read_bytes() == b"the bytes of a lora"
    expect(visitor.loss).to_contain_text("Step 3 of 3: 0.1")
    expect(page.locator(".lora")).to_contain_text("19 B")
    for words in ("a teal square", picture, "91 tokens (CAPTION_CUT)"):
        expect(page.locator(".pictures")).to_contain_text(words)
    expect(page).to_have_title("succeeded: my-cat · Tunesmith")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_failed_tune_says_why(visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer) -> None:
    tune = client.tune("my-cat", [picture], steps=20)
    attempt = trainer.take()
    attempt.fail("DIVERGED", "The loss is no number since step 7.")

    visitor.open()
    expect(visitor.rows).to_contain_text("The loss is no number since step 7.")
    visitor.page.get_by_role("link", name="my-cat").click()

    expect(visitor.page.locator(".tune .callout")).to_have_text("The loss is no number since step 7.")
    expect(visitor.log.last).to_contain_text("DIVERGED")
    assert visitor.page.url.endswith(f"/#{tune['id']}")


def test_a_key_that_ends_leads_back_to_the_form_and_on_to_the_same_place(
    visitor: Visitor, client: Client, picture: str
) -> None:
    tune = client.tune("my-cat", [picture])
    visitor.open(tune["id"])
    page = visitor.page
    expect(page.get_by_role("heading", name="my-cat")).to_be_visible()

    def with_another_key(route: Route) -> None:
        route.continue_(headers={**route.request.headers, "authorization": "Bearer ts_ended"})

    page.route("**/v1/**", with_another_key)
    visitor.look()

    expect(page.locator("#wrong")).to_have_text("This key is not known here any more.")
    assert "my-cat" not in page.content()
    assert page.evaluate("sessionStorage.length") == 0
    page.unroute("**/v1/**")
    visitor.enter()
    expect(page.get_by_role("heading", name="my-cat")).to_be_visible()


@pytest.mark.parametrize(
    ("status", "said"), [(503, "The gateway does not answer."), (429, "Your tenant may make 1 request a second.")]
)
def test_it_waits_as_long_as_it_is_told_and_what_was_shown_stays(
    visitor: Visitor, client: Client, picture: str, status: int, said: str
) -> None:
    client.tune("my-cat", [picture])
    visitor.open()
    expect(visitor.rows).to_have_count(1)
    page = visitor.page
    body = '{"detail": "Your tenant may make 1 request a second."}'

    page.route("**/v1/tunes?*", lambda route: route.fulfill(status=status, headers={"Retry-After": "40"}, body=body))

    visitor.look()

    banner = page.locator("#banner")
    expect(banner).to_contain_text(said)
    expect(banner).to_contain_text(re.compile(r"Trying again in (40|3\d) s\."))
    expect(visitor.rows).to_have_count(1)
    page.unroute("**/v1/tunes?*")
    banner.get_by_role("button", name="Try now").click()
    expect(banner).to_be_hidden()


def test_nothing_is_wider_than_a_phone(
    browser: Browser, visitor: Visitor, client: Client, picture: str, trainer: ScriptedTrainer
) -> None:
    page = visitor.page
    page.set_viewport_size({"width": 360, "height": 740})
    tune = client.tune("a_name_without_any_place_to_break_it" * 3, [picture], steps=20, hyperparameters={"rank": 4})
    attempt = trainer.take()
    attempt.resolve(RECIPE)
    attempt.log(warning=pb.Warning(reason="CAPTION_LACKS_TRIGGER", details="0123456789" * 20))
    attempt.tell("training", [0.5, 0.4, 0.3])
    widths: dict[str, int] = {}

    def measure(what: str) -> None:
        widths[what] = page.evaluate("document.documentElement.scrollWidth")

    page.goto(visitor.account.url)
    measure("key")
    visitor.enter()
    expect(visitor.rows).to_have_count(1)
    measure("list")
    page.goto(f"{visitor.account.url}/#{tune['id']}")
    expect(visitor.loss.locator("path.mean")).to_be_visible()
    for summary in page.locator("summary:visible").all():
        summary.click()
    expect(page.get_by_text("a teal square")).to_be_visible()
    measure("tune")

    assert widths == {"key": 360, "list": 360, "tune": 360}
    log = page.get_by_role("log")
    assert log.evaluate("log => log.scrollWidth") == log.evaluate("log => log.clientWidth")


def tab_to(page: Page, wanted: Locator) -> None:
    """Presses Tab until it has the focus."""
    for _ in range(12):
        if wanted.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"twelve tabs do not lead to {wanted}")

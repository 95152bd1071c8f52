"""The search page in a browser, over a real index. Skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn

from rayvec.serving.api import make_api
from tests.artifacts import texts_for
from tests.services import COUNT, make_gateway

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")]

NO_NETWORK = ("background-networking", "component-update", "sync", "default-apps")
FLAGS = ["--no-sandbox", "--disable-gpu", *(f"--disable-{name}" for name in NO_NETWORK)]
QUERY = "sort the list in place"


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    """The same application that Serve runs, on a plain server in a thread."""
    # The browser's driver keeps an event loop in this thread, so everything of the server's is made in another.
    with ThreadPoolExecutor(1) as thread, socket.create_server(("127.0.0.1", 0)) as listening:
        app = make_api(thread.submit(asyncio.run, make_gateway(index)).result(), body_bytes=2_000_000)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread.submit(server.run, [listening])
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser, address: str) -> Iterator[sync_api.Page]:
    """A fresh tab with the page open. What the script throws, or the browser complains of, fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(address)
    yield page
    context.close()
    assert complaints == []


def search(page: sync_api.Page, query: str = QUERY) -> None:
    """Type, and wait for what it brings."""
    page.locator("#query").fill(query)
    page.locator("#query").press("Enter")
    answered = "query => document.title.startsWith(query) && !document.body.matches('.busy')"
    page.wait_for_function(answered, arg=query[:60])


def test_start_says_what_is_searched(page: sync_api.Page) -> None:
    sync_api.expect(page.locator("#notice h2")).to_have_text(f"Search {COUNT} documents")
    sync_api.expect(page.locator("#facts")).to_have_text(f"{COUNT} documents · hash:64 · v1")
    sync_api.expect(page.locator("#query")).to_be_focused()


def test_typing_alone_brings_hits_with_score_title_text_and_payload(page: sync_api.Page) -> None:
    page.locator("#query").press_sequentially("document number5")
    first = page.locator(".hit").first
    sync_api.expect(first.locator("h2")).to_have_text("title 5")
    sync_api.expect(first.locator(".text")).to_contain_text("list.sort")
    sync_api.expect(first.locator(".meta")).to_have_text("line 5")
    assert 0 < float(first.locator(".number").inner_text()) <= 1
    sync_api.expect(first.locator(".signals")).to_have_text("dense #1 · lexical #1")
    sync_api.expect(page.locator("#timing")).to_contain_text("total")


def test_words_of_the_query_are_marked(page: sync_api.Page) -> None:
    search(page)
    assert {word.lower() for word in page.locator("mark").all_inner_texts()} >= {"sort", "list", "place"}


def test_mode_is_switched_and_kept_in_the_address(page: sync_api.Page) -> None:
    search(page)
    page.get_by_role("radio", name="Lexical").check()
    page.wait_for_url("**/?q=sort+the+list+in+place&mode=lexical")
    sync_api.expect(page.locator(".signals")).to_have_count(0)


def test_address_brings_the_search_back(page: sync_api.Page, address: str) -> None:
    page.goto(f"{address}?q=number7&mode=lexical")
    sync_api.expect(page.locator(".hit h2")).to_have_text(["title 7"])
    sync_api.expect(page.locator("input[value=lexical]")).to_be_checked()


def test_hit_opens_to_its_whole_text_and_payload(page: sync_api.Page) -> None:
    search(page, "number5")
    page.locator(".open").first.click()
    first = page.locator(".hit").first
    sync_api.expect(first.locator(".text")).to_have_text(texts_for(COUNT)[5])
    sync_api.expect(first.locator(".fields dd").first).to_have_text("doc-5")
    sync_api.expect(first.locator(".open")).to_have_attribute("aria-expanded", "true")


def test_keys_reach_everything(page: sync_api.Page) -> None:
    search(page)
    buttons = page.locator(".open")
    page.keyboard.press("ArrowDown")
    sync_api.expect(buttons.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    sync_api.expect(buttons.nth(2)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    sync_api.expect(buttons.nth(1)).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("m")
    sync_api.expect(page.locator("input[value=dense]")).to_be_checked()
    page.keyboard.press("/")
    sync_api.expect(page.locator("#query")).to_be_focused()
    assert page.locator("#query").input_value() == QUERY


def test_show_more_adds_to_what_is_shown(page: sync_api.Page) -> None:
    search(page)
    sync_api.expect(page.locator(".hit")).to_have_count(10)
    page.locator("#more").click()
    sync_api.expect(page.locator(".hit")).to_have_count(20)
    sync_api.expect(page.locator(".open").nth(10)).to_be_focused()


def test_nothing_found_offers_another_mode(page: sync_api.Page) -> None:
    page.get_by_role("radio", name="Lexical").check()
    search(page, "xylophone")
    sync_api.expect(page.locator("#notice h2")).to_have_text("No document shares a word with “xylophone”")
    page.get_by_role("button", name="Search by meaning too").click()
    sync_api.expect(page.locator(".hit")).to_have_count(10)


def test_emptied_query_brings_the_start_back(page: sync_api.Page) -> None:
    search(page)
    page.locator("#query").fill("")
    sync_api.expect(page.locator("#notice h2")).to_have_text(f"Search {COUNT} documents")
    sync_api.expect(page.locator(".hit")).to_have_count(0)


def test_error_is_shown_and_can_be_tried_again(page: sync_api.Page) -> None:
    page.route("**/v1/search", lambda route: route.abort())
    page.locator("#query").fill(QUERY)
    sync_api.expect(page.locator("#notice")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    sync_api.expect(page.locator(".hit")).to_have_count(10)


def test_services_own_message_is_shown(page: sync_api.Page) -> None:
    """A surrogate alone is typed by no one, but pasted; the service refuses it in words."""
    page.locator("#query").evaluate("box => { box.value = 'a \\ud800'; box.form.requestSubmit(); }")
    sync_api.expect(page.locator("#notice")).to_contain_text("That did not work")


@pytest.mark.parametrize(
    "query", ["<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "(((", "日本", "a" * 99]
)
def test_any_query_is_only_text(page: sync_api.Page, query: str) -> None:
    search(page, query)
    assert page.locator("main script, main img").count() == 0


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_runs_over_the_side(page: sync_api.Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    search(page)
    page.locator(".open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if shots := os.environ.get("RAYVEC_SHOTS"):
        page.screenshot(path=f"{shots}/{width}.png")

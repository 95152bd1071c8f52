"""The search page in a browser, over a real index. Skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import uvicorn

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.api import make_api
from rayvec.serving.security import Keys, new_key, parse_line
from tests.artifacts import texts_for, write_index
from tests.services import MODEL, make_gateway

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")]

NO_NETWORK = ("background-networking", "component-update", "sync", "default-apps")
FLAGS = ["--no-sandbox", "--disable-gpu", *(f"--disable-{name}" for name in NO_NETWORK)]
QUERY = "sort the list in place"


#: A document that would run as markup, wherever it were put in as such.
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> hostile <script>document.title='broken'</script>"
COUNT = 25
KEY, LINE = new_key("reader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with a column of each kind that a filter may test."""
    folder = tmp_path_factory.mktemp("page") / "index"
    encoder = HashEncoder.parse(MODEL)
    texts = [*texts_for(COUNT - 1), HOSTILE]
    rows = range(COUNT)
    extra = {
        "share": pa.array([None if row == 5 else row / 4 for row in rows], pa.float64()),
        "seen": pa.array([f"2024-01-{row + 1:02d}T12:00:00" for row in rows]).cast(pa.timestamp("ms")),
        "good": pa.array([row % 2 == 0 for row in rows]),
        "tags": pa.array([["even", "any"] if row % 2 == 0 else ["odd", "any"] for row in rows]),
        "a note": pa.array([HOSTILE if row == COUNT - 1 else f"note {row % 3}" for row in rows]),
    }
    write_index(folder, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder=MODEL, extra=extra)
    return folder


@contextmanager
def served(folder: Path, keys: Keys | None = None) -> Iterator[str]:
    """The same application that Serve runs, on a plain server in a thread."""
    # The browser's driver keeps an event loop in this thread, so everything of the server's is made in another.
    gateway = make_gateway(folder, instructions={"query": "Find the function"})
    with ThreadPoolExecutor(1) as thread, socket.create_server(("127.0.0.1", 0)) as listening:
        app = make_api(thread.submit(asyncio.run, gateway).result(), body_bytes=2_000_000, keys=keys)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread.submit(server.run, [listening])
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


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
    page.on("console", lambda line: complaints.append(line.text) if is_complaint(line) else None)
    page.goto(address)
    yield page
    context.close()
    assert complaints == []


def is_complaint(line: sync_api.ConsoleMessage) -> bool:
    """Whatever the browser calls an error or a warning, but for answers that a test asks to fail."""
    # Pixels are read back by these tests alone.
    return line.type in ("error", "warning") and not line.text.startswith(("Failed to load resource", "Canvas2D"))


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
    sync_api.expect(first.locator(".meta")).to_contain_text("line 5")
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


def test_documents_like_a_hit_are_found_and_kept_in_the_address(page: sync_api.Page) -> None:
    search(page)
    page.locator(".hit .open").first.click()
    first = page.locator(".hit .fields dd").first.inner_text()
    page.get_by_role("button", name="More like this").click()
    sync_api.expect(page.locator("#status")).to_have_text(f"10 hits like {first}")
    assert page.locator("#query").input_value() == "" and page.url.endswith(f"like={first}")
    page.locator(".hit .open").first.click()
    assert page.locator(".hit .fields dd").first.inner_text() != first
    page.reload()
    sync_api.expect(page.locator("#status")).to_have_text(f"10 hits like {first}")
    search(page)
    assert "like=" not in page.url and "like" not in page.locator("#status").inner_text()


def test_parts_that_did_not_answer_are_told(page: sync_api.Page) -> None:
    def partly(route: sync_api.Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "coverage": 0.75, "missing_parts": [2]})

    page.route("**/v1/search", partly)
    search(page)
    sync_api.expect(page.locator("#status")).to_contain_text("among 75 % of the vectors: 1 part did not answer")


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


# Filters


def ids(page: sync_api.Page) -> set[int]:
    """The rows of the documents that are shown, by their titles and ids."""
    return {int(name.split()[-1].removeprefix("doc-")) for name in page.locator(".hit h2").all_inner_texts()}


def add_filter(page: sync_api.Page, column: str, test: str, value: str) -> sync_api.Locator:
    page.get_by_role("button", name="Add a filter").click()
    row = page.locator(".condition").last
    row.get_by_label("Column").select_option(column)
    row.get_by_label(f"Test of {column}").select_option(label=test)
    field = row.get_by_label(f"Value of {column}")
    field.select_option(label=value) if column == "good" or test == "has a value" else field.fill(value)
    return row


@pytest.mark.parametrize(
    ("column", "test", "value", "passing"),
    [
        ("line", "more than", "5", {6, 7}),
        ("line", "is one of", "3, 5,7,99", {3, 5, 7}),
        ("share", "less than", "0.6", {0, 1, 2}),
        ("share", "has a value", "no", {5}),
        ("tags", "has a value", "yes", set(range(8))),
        ("seen", "until", "2024-01-02T12:00", {0, 1}),
        ("good", "is not", "true", {1, 3, 5, 7}),
        ("tags", "is", "odd", {1, 3, 5, 7}),
        ("a note", "is", "note 1", {1, 4, 7}),
        ("id", "is one of", "doc-4, doc-9", {4}),
    ],
)
def test_a_filter_of_each_kind_leaves_what_passes(
    page: sync_api.Page, address: str, column: str, test: str, value: str, passing: set[int]
) -> None:
    page.goto(f"{address}?q=sort&mode=dense&where=line+lt+8")
    sync_api.expect(page.locator(".hit")).to_have_count(8)
    add_filter(page, column, test, value)
    sync_api.expect(page.locator(".hit")).to_have_count(len(passing))
    assert ids(page) == passing
    sync_api.expect(page.locator("#refined")).to_have_text("2")


def test_filters_are_kept_in_the_address_until_they_are_removed(page: sync_api.Page) -> None:
    search(page)
    page.get_by_role("button", name="Filters").click()
    row = add_filter(page, "a note", "is", HOSTILE)
    sync_api.expect(page.locator(".hit")).to_have_count(1)
    page.reload()  # as somebody to whom the address was sent
    sync_api.expect(page.locator(".hit")).to_have_count(1)
    assert ids(page) == {COUNT - 1}
    row.get_by_role("button", name="Remove the filter on a note").click()
    sync_api.expect(page.locator(".hit")).to_have_count(10)
    assert "where" not in page.url and page.locator(".condition").count() == 0


def test_filters_are_joined_by_and(page: sync_api.Page, address: str) -> None:
    page.goto(f"{address}?q=sort&mode=dense&where=line+gte+4&where=line+lt+8&where=tags+eq+even")
    sync_api.expect(page.locator(".hit")).to_have_count(2)
    assert ids(page) == {4, 6}


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("line", "abc", "line: “abc” is no whole number."),
        ("share", "1,5", "share: “1,5” is no number."),
        ("seen", "yesterday", "seen: “yesterday” is no date or time"),
        ("seen", "2024-01-01T10:00:00Z", "seen is a column of"),  # of the server
    ],
)
def test_what_is_wrong_with_a_filter_stands_beside_it(
    page: sync_api.Page, column: str, value: str, complaint: str
) -> None:
    search(page)
    page.get_by_role("button", name="Filters").click()
    row = add_filter(page, column, "since" if column == "seen" else "at least", value)
    wrong = row.locator(".wrong")
    sync_api.expect(wrong).to_contain_text(complaint)
    field = row.get_by_label(f"Value of {column}")
    sync_api.expect(field).to_have_accessible_description(wrong.inner_text())
    assert field.get_attribute("aria-invalid") is not None
    sync_api.expect(page.locator("#status")).to_have_text("Correct the filter first.")
    sync_api.expect(page.locator(".hit")).to_have_count(0)
    field.fill("2024-01-01" if column == "seen" else "1")
    sync_api.expect(page.locator(".hit")).not_to_have_count(0)
    sync_api.expect(wrong).to_be_hidden()


def test_a_filter_without_a_value_asks_nothing_until_it_is_sent(page: sync_api.Page) -> None:
    search(page)
    page.get_by_role("button", name="Filters").click()
    row = add_filter(page, "line", "is", "")
    sync_api.expect(page.locator(".hit")).to_have_count(10)
    row.get_by_label("Value of line").press("Enter")
    sync_api.expect(row.locator(".wrong")).to_have_text("Give a value, or remove this filter.")


def test_columns_that_are_not_there_are_named(page: sync_api.Page, address: str) -> None:
    page.goto(f"{address}?where=nope+eq+1")
    sync_api.expect(page.locator("#left-out")).to_contain_text("nope eq 1")


def test_an_instruction_goes_with_the_query_in_place_of_the_encoder_s(page: sync_api.Page) -> None:
    page.get_by_role("button", name="Filters").click()
    sync_api.expect(page.get_by_label("Instruction")).to_have_attribute("placeholder", "Find the function")
    with page.expect_request(lambda request: "find code" in (request.post_data or "")) as sent:
        page.get_by_label("Instruction").fill("find code")
        search(page)
    assert sent.value.post_data_json["instruction"] == "find code"
    assert "instruction=find+code" in page.url


# What comes from documents


def test_a_hostile_document_is_only_text_and_its_words_are_marked(page: sync_api.Page, address: str) -> None:
    page.goto(f"{address}?q=hostile+onerror&mode=lexical")
    first = page.locator(".hit").first
    sync_api.expect(first.locator("mark")).to_have_text(["onerror", "hostile"])
    page.locator(".open").first.click()
    sync_api.expect(first.locator(".text")).to_have_text(HOSTILE)
    sync_api.expect(first.locator(".fields")).to_contain_text(HOSTILE)
    assert page.locator("main script, main img").count() == 0
    assert page.title() == "hostile onerror · rayvec"


# Map

PIXELS = """() => {
  const canvas = document.getElementById("canvas"), paint = canvas.getContext("2d");
  const style = getComputedStyle(canvas), own = paint.fillStyle;
  paint.fillStyle = style.getPropertyValue("--accent");
  const [r, g, b] = paint.fillStyle.match(/\\w\\w/g).map((part) => parseInt(part, 16));
  paint.fillStyle = own;
  const { data } = paint.getImageData(0, 0, canvas.width, canvas.height);
  const found = { drawn: 0, lit: 0 };
  for (let i = 0; i < data.length; i += 4) {
    found.drawn += data[i + 3] > 0;
    found.lit += data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255;
  }
  return found;
}"""


def to_map(page: sync_api.Page) -> None:
    page.get_by_role("tab", name="Map").click()
    sync_api.expect(page.locator("#caption")).to_contain_text("of the variance")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_draws_documents_and_lights_hits(page: sync_api.Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    to_map(page)
    before = page.evaluate(PIXELS)
    assert before["drawn"] > 10 * COUNT and before["lit"] == 0
    search(page)
    sync_api.expect(page.locator("#legend li")).to_have_count(10)
    assert page.evaluate(PIXELS)["lit"] > 10 * 30
    assert "view=map" in page.url
    name = f"Map of {COUNT} documents; 10 hits lit, listed below"
    sync_api.expect(page.get_by_role("img", name=name)).to_be_visible()


def test_a_point_says_what_it_is_and_a_hit_opens(page: sync_api.Page, address: str) -> None:
    page.goto(f"{address}?q=number7&mode=lexical&view=map")
    legend = page.locator("#legend button")
    sync_api.expect(legend).to_have_text(["1title 7"])
    legend.focus()
    sync_api.expect(page.locator("#tip")).to_have_text("title 7")
    tip, canvas = page.locator("#tip").bounding_box(), page.locator("#canvas").bounding_box()
    assert tip and canvas
    assert canvas["x"] <= tip["x"] and tip["x"] + tip["width"] <= canvas["x"] + canvas["width"]
    legend.press("Enter")
    sync_api.expect(page.get_by_role("tab", name="List")).to_have_attribute("aria-selected", "true")
    sync_api.expect(page.locator(".open")).to_be_focused()
    sync_api.expect(page.locator(".open")).to_have_attribute("aria-expanded", "true")


def test_pointing_at_a_point_shows_its_title_and_zooming_keeps_it(page: sync_api.Page) -> None:
    to_map(page)
    places = page.evaluate("fetch('v1/map').then((answer) => answer.json())")
    row = max(range(COUNT), key=lambda i: places["x"][i])
    box = page.locator("#canvas").bounding_box()
    assert box
    # The plane fits the box, so the rightmost document lies at its right margin or, where height binds, within it.
    high = max(places["y"]) - min(places["y"])
    wide = max(places["x"]) - min(places["x"])
    fit = min((box["width"] - 44) / wide, (box["height"] - 44) / high)
    x = box["x"] + box["width"] / 2 + fit * wide / 2
    y = box["y"] + box["height"] / 2 - fit * (places["y"][row] - (max(places["y"]) + min(places["y"])) / 2)
    page.mouse.move(x, y)
    expected = places["titles"][row] or places["ids"][row]
    sync_api.expect(page.locator("#tip")).to_have_text(expected)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    sync_api.expect(page.get_by_role("button", name="Show all of it")).to_be_enabled()
    page.mouse.move(x + 1, y)
    sync_api.expect(page.locator("#tip")).to_have_text(expected)
    page.get_by_role("button", name="Show all of it").click()
    sync_api.expect(page.get_by_role("button", name="Zoom out")).to_be_disabled()


def test_a_map_that_does_not_come_is_said_and_hits_are_there_all_the_same(page: sync_api.Page) -> None:
    page.route("**/v1/map", lambda route: route.abort())
    page.get_by_role("tab", name="Map").click()
    sync_api.expect(page.locator("#caption")).to_contain_text("The map cannot be shown.")
    search(page)
    sync_api.expect(page.locator("#legend li")).to_have_count(10)
    page.unroute("**/v1/map")
    page.get_by_role("button", name="Try again").click()
    sync_api.expect(page.locator("#caption")).to_contain_text("of the variance")


# Everybody


def focused(page: sync_api.Page) -> str:
    """The name of what has the focus, as it is read out, or its id."""
    name: str = page.evaluate("(({ ariaLabel, id }) => ariaLabel || id)(document.activeElement)")
    return name


def test_the_whole_page_by_keyboard(page: sync_api.Page) -> None:
    page.keyboard.type("sort the list")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".hit")).to_have_count(10)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.get_by_role("radio", name="Dense")).to_be_checked()
    page.keyboard.press("Tab")
    assert focused(page) == "refine"
    page.keyboard.press("Tab")
    assert focused(page) == "tab-list"
    page.keyboard.press("f")
    assert focused(page) == "Column"
    page.keyboard.type("line")
    page.keyboard.press("Tab")
    page.keyboard.type("at least")
    page.keyboard.press("Tab")
    page.keyboard.type("20")
    sync_api.expect(page.locator(".hit")).to_have_count(5)
    page.keyboard.press("Escape")
    assert focused(page) == "query"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert focused(page) == "tab-list"
    page.keyboard.press("ArrowRight")
    assert focused(page) == "tab-map"
    sync_api.expect(page.locator("#legend li")).to_have_count(5)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    sync_api.expect(page.locator("#legend button").nth(1)).to_be_focused()
    sync_api.expect(page.locator("#tip")).to_be_visible()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".open").nth(1)).to_be_focused()
    page.keyboard.press("v")
    sync_api.expect(page.locator("#canvas")).to_be_visible()


#: Contrast of every piece of text that is seen with what lies behind it, as WCAG counts it; those below 4.5.
CONTRAST = """() => {
  const dot = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const paint = dot.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const text = texts.currentNode.data.trim();
    if (!text || !node.checkVisibility({ visibilityProperty: true })) continue;
    if (node.closest("noscript, .unseen, :disabled, option")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    seen++;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([ratio.toFixed(2), node.className, text.slice(0, 30)]);
  }
  return { seen, poor };
}"""
INTERACTIVE = {"button", "textbox", "searchbox", "combobox", "radio", "tab", "link"}
NAMED = INTERACTIVE | {"image", "img", "tabpanel", "tablist", "group", "list"}


@pytest.mark.parametrize("view", ["&where=line+gte+abc", "&where=line+gte+2", "&view=map"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(page: sync_api.Page, address: str, scheme: str, view: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{address}?q=sort+the+list{view}")
    sync_api.expect(page.locator("#status")).not_to_be_empty()
    sync_api.expect(page.locator("#facts")).not_to_be_empty()
    found = page.evaluate(CONTRAST)
    assert found["seen"] > 15 and found["poor"] == []
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    nodes = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert {role for role, _ in nodes} >= {"search", "main", "tab", "tabpanel", "searchbox", "radio"}
    assert [role for role, name in nodes if role in NAMED and not name and role != "list"] == []
    names = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("width", "view"),
    [
        (320, "where=line+gte+2&where=a+note+eq+note+1"),
        (360, "where=line+gte+2"),
        (360, "view=map"),
        (768, "where=line+gte+2"),
    ],
)
def test_nothing_runs_over_the_side(page: sync_api.Page, address: str, width: int, view: str) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(f"{address}?q={QUERY}&{view}")
    sync_api.expect(page.locator("#status")).to_contain_text("hit")
    if view != "view=map":
        page.locator(".open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.locator("form button:not(.unseen), select, #legend button, .zoom button").evaluate_all(
        "all => all.filter((one) => one.checkVisibility()).map((one) => [one.getBoundingClientRect().height, one.id])"
    )
    assert len(heights) > 3 and [one for one in heights if one[0] < 24] == []  # for a thumb
    if shots := os.environ.get("RAYVEC_SHOTS"):
        page.screenshot(path=f"{shots}/{width}{view[:4]}.png")


def test_where_keys_are_asked_for_one_key_opens_search_filters_and_map(browser: sync_api.Browser, folder: Path) -> None:
    known = parse_line(LINE)
    assert known is not None
    with served(folder, Keys([known])) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}?q=number7&mode=lexical&where=line+eq+7&view=map")
        page.get_by_label("API key").fill("rv-wrong")
        page.get_by_role("button", name="Use key").click()
        sync_api.expect(page.get_by_label("API key")).to_have_value("")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        sync_api.expect(page.locator("#legend button")).to_have_text(["1title 7"])
        sync_api.expect(page.locator("#caption")).to_contain_text("of the variance")
        sync_api.expect(page.locator(".condition")).to_have_count(1)

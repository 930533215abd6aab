"""The page in a real browser: it asks, sounds, stops, and comes back."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from experiments.live.server import ServerThread
from tests.browser import browser, open_page, wait_until  # noqa: F401 - a fixture
from tests.experiments.live.tiny import make_system, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with serving() as one:
        yield one


@pytest.fixture
def page(browser: Browser, server: ServerThread) -> Iterator[Page]:  # noqa: F811
    one = open_page(browser, server.address)
    wait_until(one, "live.isReady")
    yield one
    assert one.errors == []  # type: ignore[attr-defined]
    one.context.close()


def ask(page: Page, text: str, first: str = "mdm_4", second: str = "") -> None:
    page.select_option("#decoding-0", first)
    page.select_option("#decoding-1", second)
    page.fill("#text", text)
    page.press("#text", "Enter")


def samples_of(page: Page) -> list[int]:
    """Samples that the server has sent of each reply, by what the page shows of its blocks."""
    shown = "[...document.querySelectorAll('article')].map((one) => one.querySelectorAll('.cell[title]').length)"
    return [640 * count for count in page.evaluate(shown)]


def test_a_typed_query_is_heard_to_its_end(page: Page) -> None:
    ask(page, "Who are you?")
    wait_until(page, "live.counters.finished == 1")
    counters = page.evaluate("live.counters")
    assert counters["played"] == samples_of(page)[0] == 30_720 and counters["underruns"] == 0
    assert len(counters["firstSoundMs"]) == 1 and 0 < counters["arrivalMs"][0] <= counters["firstSoundMs"][0]
    assert page.inner_text("#asked") == "Who are you?"
    assert page.inner_text("#heard").endswith("samples") and page.inner_text("#heard-by") == "It heard (thinker)"
    assert page.inner_text(".answer") and "ms" in page.inner_text(".stage-names")
    wait_until(page, "document.querySelectorAll('.cell:not(.is-shown)').length == 0")
    page.click("text=Play again")
    wait_until(page, "live.counters.finished == 2")
    assert page.evaluate("live.counters.played") == 61_440


def test_two_decodings_are_heard_one_after_the_other_and_shown_side_by_side(page: Page) -> None:
    page.select_option("#decoding-0", "ntp")
    page.select_option("#decoding-1", "mdm_4")
    page.select_option("#query", "test_1")
    page.click("#test button")
    wait_until(page, "live.counters.finished == 2")
    assert page.evaluate("live.counters.played") == sum(samples_of(page))
    left, right = page.locator("article").all()
    assert left.get_attribute("aria-label") == "Reply by ntp" and right.get_attribute("aria-label") == "Reply by mdm_4"
    boxes = left.bounding_box(), right.bounding_box()
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    assert page.inner_text("#asked") == "Query 1?"
    assert "step" in (right.locator(".cell[title]").first.get_attribute("title") or "")


def test_stop_silences_and_the_next_query_is_answered(page: Page) -> None:
    ask(page, "Who are you?", second="ntp")
    wait_until(page, "live.counters.played > 0")
    page.keyboard.press("Escape")
    played = page.evaluate("live.counters.played")
    page.wait_for_timeout(400)
    assert page.evaluate("live.counters.played") <= played + 3200 and page.is_disabled("#stop")
    ask(page, "And now?")
    wait_until(page, "live.counters.finished == 1")
    assert page.inner_text("#asked") == "And now?"


def test_a_reload_in_the_middle_leaves_nothing_behind(page: Page, server: ServerThread) -> None:
    ask(page, "Who are you?", second="ntp")
    wait_until(page, "live.counters.played > 0")
    page.reload()
    wait_until(page, "live.isReady")
    assert page.inner_text("#asked") == "–"
    ask(page, "And now?")
    wait_until(page, "live.counters.finished == 1")
    assert server.server.num_clients == 1


def test_the_page_comes_back_with_its_server(browser: Browser) -> None:  # noqa: F811
    with ServerThread(make_system()) as server:
        port = int(server.address.rstrip("/").rsplit(":", 1)[1])
        page = open_page(browser, server.address)
        wait_until(page, "live.isReady")
        ask(page, "Who are you?")
        wait_until(page, "live.counters.played > 0")
    wait_until(page, "document.querySelector('#connection').dataset.state == 'lost'")
    assert page.is_disabled("#talk")
    with ServerThread(make_system(), port=port):
        wait_until(page, "document.querySelector('#connection').dataset.state == 'ready'")
        before = page.evaluate("live.counters.finished")
        ask(page, "And now?")
        wait_until(page, f"live.counters.finished == {before} + 1")
    page.context.close()


def test_everything_has_a_name_and_fits_a_phone(browser: Browser, server: ServerThread) -> None:  # noqa: F811
    page = open_page(browser, server.address, width=375, height=740, dark=True)
    wait_until(page, "live.isReady")
    ask(page, "Who are you?", second="ntp")
    wait_until(page, "live.counters.finished == 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    unnamed = """[...document.querySelectorAll('button, input, select, meter')].filter((one) => one.offsetParent &&
        !(one.ariaLabel || one.labels?.length || one.textContent.trim())).map((one) => one.outerHTML)"""
    assert page.evaluate(unnamed) == []
    page.focus("#theme")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"talk", "auto-end", "text", "query", "decoding-0", "decoding-1"} <= set(seen)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != dark
    page.context.close()

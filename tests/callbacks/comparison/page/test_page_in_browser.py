"""The page in a real browser, from disk: nothing complains, players play, sliders move, all by keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route

from callbacks.comparison.page.page import write_page
from tests.browser import browser, open_page  # noqa: F401
from tests.callbacks.comparison.page.tiny_run import BLOCK, write_run

pytestmark = pytest.mark.browser

PLAYED = """audio => new Promise(done => {
  audio.addEventListener('ended', () => done(audio.currentTime));
  audio.play();
})"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "toys" / "comparison-1")
    return write_page([run], run / "comparison.html")


@pytest.fixture(scope="module")
def page(browser: Browser, file: Path) -> Iterator[Page]:  # noqa: F811
    opened = open_page(browser, "about:blank")
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    opened.route(lambda address: address.startswith(("http:", "https:", "ws:")), refuse)
    opened.goto(file.as_uri())
    yield opened
    assert opened.errors == []  # type: ignore[attr-defined]
    assert asked == [], "it asks nothing of the network"
    opened.context.close()


def test_all_plots_are_drawn_in_both_themes(page: Page) -> None:
    for _ in range(2):
        assert page.locator(".plot .main-svg").count() >= 5
        page.get_by_role("button", name="Dark or light").click()
    assert page.locator("html").get_attribute("data-theme") in ("dark", "light")
    ink = "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    before = page.evaluate(ink)
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(ink) != before


def test_players_play_to_their_end(page: Page) -> None:
    page.get_by_role("button", name="a: 50 % wrong, trip").click()
    players = page.locator("audio")
    assert players.count() == 4, "the query, the original and two decodings"
    for index in range(players.count()):
        assert players.nth(index).get_attribute("aria-label")
        assert players.nth(index).evaluate(PLAYED) == pytest.approx(0.5, abs=0.1)


def test_the_film_shows_each_step_by_keyboard(page: Page) -> None:
    page.get_by_role("button", name="a: 50 % wrong, trip").click()
    card = page.get_by_role("article", name="mdm_2")
    card.locator("summary").focus()
    page.keyboard.press("Enter")
    slider = card.get_by_role("slider", name="mdm_2, block 1: steps done")
    cells = card.locator(".block").first.locator("li")
    assert cells.all_inner_texts() == ["5", "6", "7", "8"]
    assert cells.nth(3).get_attribute("class") == "corrected"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert cells.all_inner_texts() == ["5", "6", "7", "3"], "the draft, before it is corrected"
    assert slider.get_attribute("aria-valuetext") == "step 2 of 3, 3 of 4 tokens"
    page.keyboard.press("Home")
    assert set(cells.all_inner_texts()) == {""} and cells.nth(0).get_attribute("class") == "masked"
    card.get_by_role("button", name="Play the film").click()
    card.get_by_role("button", name="Play the film").wait_for()
    assert cells.all_inner_texts() == ["5", "6", "7", "8"], "it ends with all tokens"


def test_another_dialogue_is_chosen_by_keyboard(page: Page) -> None:
    button = page.get_by_role("button", name="b: 50 % wrong, trip")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.get_by_role("article", name="ntp").locator(".deletion").inner_text() == "is"
    page.get_by_role("button", name="c: 50 % wrong, trip").click()
    silent = page.get_by_role("article", name="mdm_2")
    assert "No sound." in silent.inner_text()
    assert silent.locator(".deletion").inner_text() == "tea for b bob b eve", "all of it is missing"
    assert "<b>Bob</b>" in page.locator(".asked").inner_text(), "what is said is no HTML"


def test_the_table_sorts_up_and_down(page: Page) -> None:
    head = page.locator(".figures").get_by_role("button", name="steps", exact=True)
    names = page.locator(".figures tbody th")
    head.click()
    assert [name.split("\n")[0] for name in names.all_inner_texts()] == ["mdm_2", "ntp", "original audio"]
    head.press("Enter")
    assert [name.split("\n")[0] for name in names.all_inner_texts()] == ["ntp", "mdm_2", "original audio"]
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert BLOCK == 4


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, file: Path) -> None:  # noqa: F811
    page = open_page(browser, file.as_uri(), 390, 800, dark=True)
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.errors == []  # type: ignore[attr-defined]
    page.context.close()

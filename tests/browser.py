"""A real browser for tests marked ``browser``: Debian's chromium without a window, driven by playwright.

A test module imports the fixture ``browser`` (``# noqa: F401``) and asks for it; a page is opened by :func:`open_page`,
which collects what the console complains about.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# What the page may use without asking: there is nobody to click, and no sound card.
FLAGS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)
TIMEOUT_MS = 30_000


def find_chromium() -> str:
    """Return the path of the browser; without one the test is skipped, but in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        why = "there is no chromium; install the Debian package chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


@contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Browser]:
    """Start a browser that ends with this context.

    Args:
        microphone: A wav file that is spoken once into the fake microphone; beeps if None.
    """
    spoken = [] if microphone is None else [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    path = find_chromium()
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *spoken], timeout=TIMEOUT_MS)
        try:
            yield one
        finally:
            one.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


def open_page(browser: Browser, address: str, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
    """Open an address in a window of its own; errors of its scripts and of the console are collected.

    Returns:
        The page, with the errors as its attribute ``errors``, a list of texts.
    """
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.errors = errors  # type: ignore[attr-defined]
    page.goto(address)
    return page


def wait_until(page: Page, expression: str, timeout_s: float = TIMEOUT_MS / 1000) -> object:
    """Wait until an expression is true in the page, whose policy may forbid playwright's own way, and return it."""
    give_up_s = time.monotonic() + timeout_s
    while not (found := page.evaluate(expression)):
        assert time.monotonic() < give_up_s, f"{expression} is still {found} after {timeout_s:g} s"
        page.wait_for_timeout(50)
    return found

"""What both pictures do: a window of a real browser, and screenshots below each other."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Page, sync_playwright

LOAD_S = 90.0  # until a page is there


@contextmanager
def window(width: int, height: int) -> Iterator[Page]:
    """Open chromium without a window; it ends with this context.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise FileNotFoundError("there is no chromium; install the Debian package chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * LOAD_S)
            yield page
        finally:
            browser.close()


def as_image(screenshot: bytes) -> Image.Image:
    """Read what a page gives as its screenshot."""
    return Image.open(io.BytesIO(screenshot)).convert("RGB")


def stack(shots: Sequence[Image.Image]) -> Image.Image:
    """Join pictures of one width, the first on top."""
    joined = Image.new("RGB", (shots[0].width, sum(shot.height for shot in shots)))
    top = 0
    for shot in shots:
        joined.paste(shot, (0, top))
        top += shot.height
    return joined

"""A job that draws what the page of a comparison shows, in a real browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from experiments.jobs.pictures.browser_window import as_image, stack, window
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

PLOTS_HEIGHT, DIALOGUE_HEIGHT = 610, 900


class ComparisonPicture:
    """Opens the page of a comparison in chromium without a window, and joins its first plots and a dialogue.

    Args:
        run: Directory of a run with a `comparison.html`.
        file: WebP file that is written.
        decodings: Whose films are shown, half way through.
        width: Width of the window in pixels.
        quality: Of the file, from 0 to 100.

    Raises:
        UserError: If the width is too small.
    """

    def __init__(
        self, run: Path, file: Path, decodings: Sequence[str] = (), width: int = 1280, quality: int = 70
    ) -> None:
        require_at_least(300, width=width)
        require_at_least(0, quality=quality)
        self.run_folder, self.file, self.decodings = Path(run), Path(file), list(decodings)
        self.width, self.quality = width, quality

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write the picture.

        Args:
            output_dir: The run directory; unused.

        Returns:
            Size of the file in kB.

        Raises:
            FileNotFoundError: If the run has no page, or there is no chromium.
            UserError: If the page has no film of a decoding.
        """
        html = self.run_folder / "comparison.html"
        if not html.is_file():
            raise FileNotFoundError(f"run: there is no {html}; give the directory of a finished comparison")
        with window(self.width, DIALOGUE_HEIGHT) as page:
            page.goto(html.resolve().as_uri())
            page.locator(".plot .main-svg").first.wait_for()
            page.locator("#plots").evaluate("part => part.scrollIntoView()")
            plots = _shoot(page, PLOTS_HEIGHT)
            for decoding in reversed(self.decodings):
                _open_film(page, decoding)
            page.locator("#listen").evaluate("part => part.scrollIntoView()")
            dialogue = _shoot(page, DIALOGUE_HEIGHT)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        stack([plots, dialogue]).save(self.file, quality=self.quality, method=6)
        return {"size_kb": self.file.stat().st_size / 1000}


def _open_film(page: Page, decoding: str) -> None:
    """Bring the card of a decoding to the front, and show its blocks half way through."""
    card = page.locator(f'.card[aria-label="{decoding}"]').filter(has=page.locator(".film"))
    if not card.count():
        known = page.locator(".card").evaluate_all("cards => cards.map(card => card.getAttribute('aria-label'))")
        raise UserError(f"there is no film of {decoding}; choose among {', '.join(known)}")
    card.locator("summary").click()
    steps = card.locator(".all input")
    steps.fill(str(round(int(steps.get_attribute("max") or 0) / 2)))
    card.evaluate("card => card.parentElement.prepend(card)")


def _shoot(page: Page, height: int) -> Image.Image:
    page.wait_for_timeout(500)
    size = page.viewport_size
    assert size is not None
    return as_image(page.screenshot(clip={"x": 0, "y": 0, "width": size["width"], "height": height}))

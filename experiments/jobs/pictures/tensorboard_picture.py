"""A job that draws what TensorBoard shows of finished runs, with a real TensorBoard in a real browser."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, TimeoutError

from experiments.jobs.pictures.browser_window import as_image, stack, window
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

PAGES = {"custom_scalars": "tf-custom-scalar-multi-line-chart-card", "hparams": "tf-hparams-main"}
READY_S, SETTLE_S = 60.0, 12.0  # until it answers, until curves are drawn


class TensorBoardPicture:
    """Starts TensorBoard, opens some of its pages in chromium without a window, and joins what it shows to one picture.

    Args:
        logdir: Folder of runs.
        file: PNG file that is written.
        pages: Of "custom_scalars" and "hparams", one below the other.
        width: Width of the window in pixels.
        heights: Height of each page's part in pixels.
        num_colors: Colours that the file keeps; a screenshot has few, and is small with few.

    Raises:
        UserError: If a number is out of range, or a page is unknown.
    """

    def __init__(
        self,
        logdir: Path,
        file: Path,
        pages: Sequence[str] = ("custom_scalars", "hparams"),
        width: int = 1500,
        heights: Sequence[int] = (1000, 620),
        num_colors: int = 64,
    ) -> None:
        require_at_least(200, width=width, **{f"heights[{index}]": one for index, one in enumerate(heights)})
        require_at_least(2, num_colors=num_colors)
        unknown = [page for page in pages if page not in PAGES]
        if unknown or not pages or len(pages) != len(heights):
            raise UserError(
                f"pages={list(pages)}, heights={list(heights)}: give pages of {list(PAGES)}, each with a height"
            )
        self.logdir, self.file, self.pages = Path(logdir), Path(file), list(pages)
        self.width, self.heights, self.num_colors = width, list(heights), num_colors

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write the picture.

        Args:
            output_dir: The run directory; unused.

        Returns:
            Size of the file in kB.

        Raises:
            FileNotFoundError: If there is no such folder, or no chromium.
            UserError: If TensorBoard does not answer, or shows nothing.
        """
        if not self.logdir.is_dir():
            raise FileNotFoundError(f"logdir: there is no folder {self.logdir}; give one of runs")
        with tensorboard(self.logdir) as address, window(self.width, max(self.heights)) as page:
            shots = [
                self._shoot(page, address, name, height) for name, height in zip(self.pages, self.heights, strict=True)
            ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        stack(shots).quantize(self.num_colors).save(self.file, optimize=True)
        return {"size_kb": self.file.stat().st_size / 1000}

    def _shoot(self, page: Page, address: str, name: str, height: int) -> Image.Image:
        page.set_viewport_size({"width": self.width, "height": height})
        try:
            page.goto(f"{address}/?{name}#{name}", wait_until="domcontentloaded")  # another query loads the page again
            page.locator(PAGES[name]).first.wait_for()
        except TimeoutError as error:
            raise UserError(
                f"TensorBoard shows nothing under {name} of {self.logdir}; give a folder of runs"
            ) from error
        page.wait_for_timeout(1000 * SETTLE_S)
        return as_image(page.screenshot())


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Start TensorBoard, and stop it at the end of this context; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up_s = time.monotonic() + READY_S
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise UserError(f"TensorBoard does not answer on {address}; try by hand: tensorboard --logdir {logdir}")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
            return bool(answer.read().strip() not in (b"", b"[]"))
    except OSError:
        return False

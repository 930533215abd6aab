"""A picture of the page of a comparison, taken in a real browser."""

from pathlib import Path

import pytest
from PIL import Image

from callbacks.comparison.page.page import write_page
from experiments.jobs.pictures.comparison_picture import ComparisonPicture
from lightning_modules.errors import UserError
from tests.browser import find_chromium
from tests.callbacks.comparison.page.tiny_run import write_run


@pytest.mark.browser
def test_plots_and_a_film_are_drawn(tmp_path: Path) -> None:
    find_chromium()
    run = write_run(tmp_path / "toys" / "c-1")
    write_page([run], run / "comparison.html")
    file = tmp_path / "page.webp"
    assert ComparisonPicture(run, file, ["ntp", "mdm_2"]).run(tmp_path)["size_kb"] < 300
    drawn = Image.open(file).convert("RGB")
    assert drawn.size == (1280, 610 + 900)
    for part in (drawn.crop((0, 0, 1280, 610)), drawn.crop((0, 610, 1280, 1510))):
        colors = part.quantize(64).getcolors()
        assert colors is not None and len(colors) > 20, "it is no blank page"
    with pytest.raises(UserError, match="no film of gone; choose among original audio, ntp, mdm_2"):
        ComparisonPicture(run, file, ["gone"]).run(tmp_path)


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the directory of a finished comparison"):
        ComparisonPicture(tmp_path, tmp_path / "x.webp").run(tmp_path)
    with pytest.raises(UserError, match="width is 10"):
        ComparisonPicture(tmp_path, tmp_path / "x.webp", width=10)

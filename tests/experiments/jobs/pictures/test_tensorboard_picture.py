"""A picture of TensorBoard, taken in a real browser."""

from pathlib import Path

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from callbacks.runtime.board_layout import add_layout
from experiments.jobs.pictures.tensorboard_picture import TensorBoardPicture
from lightning_modules.errors import UserError
from tests.browser import find_chromium


@pytest.mark.browser
def test_the_page_of_curves_is_drawn(tmp_path: Path) -> None:
    find_chromium()
    with SummaryWriter(tmp_path / "runs" / "ntp") as writer:
        add_layout(writer)
        for step in range(3):
            writer.add_scalar("val/nll", 1.0 - 0.1 * step, step)
    file = tmp_path / "board.png"
    picture = TensorBoardPicture(tmp_path / "runs", file, ["custom_scalars"], 1200, [700])
    assert picture.run(tmp_path)["size_kb"] < 300
    drawn = Image.open(file)
    assert drawn.size == (1200, 700)
    colors = drawn.convert("RGB").crop((320, 120, 1200, 350)).getcolors(10_000)
    assert len(colors) > 5, "a chart is no blank page"


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pages=\['graphs'\].*give pages of \['custom_scalars', 'hparams'\]"):
        TensorBoardPicture(tmp_path, tmp_path / "x.png", ["graphs"], heights=[300])
    with pytest.raises(UserError, match="each with a height"):
        TensorBoardPicture(tmp_path, tmp_path / "x.png", heights=[300])
    with pytest.raises(FileNotFoundError, match="logdir: there is no folder .*nowhere"):
        TensorBoardPicture(tmp_path / "nowhere", tmp_path / "x.png").run(tmp_path)

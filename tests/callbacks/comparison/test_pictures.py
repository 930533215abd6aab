"""Pictures can be drawn whatever was said."""

import io
from collections.abc import Callable

import pytest
import torch
from matplotlib.figure import Figure

from callbacks.comparison.pictures import draw_mel, draw_unmasking_order

PICTURES: list[Callable[[str], Figure]] = [
    lambda title: draw_mel(torch.linspace(-1, 1, 4000), 16_000, title),
    lambda title: draw_unmasking_order(
        {"mdm_2": (2, torch.tensor([0, 1, 1, 0])), "mdm_1": (1, torch.zeros(5))}, 2, title
    ),
]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize(
    ("said", "shown"),
    [("It costs $5, not $6.", None), ("\x15\x00", "□□"), ("你好 ok", "□□ ok"), ("Grüße, ça va?", None), ("", None)],
)
def test_any_text_is_a_title(draw: Callable[[str], Figure], said: str, shown: str | None) -> None:
    figure = draw(said)
    figure.savefig(io.BytesIO())  # a character that the font lacks would warn, and a formula would fail
    assert titles(figure) == ([shown or said] if said else [])

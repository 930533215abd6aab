"""The pictures show what was measured."""

from typing import Any

import pytest

from experiments.jobs.decoding.report.pictures import draw_pareto, draw_waterfall


def figures_of(decoding: str, execution: str, passes: float, tokens_per_s: float) -> dict[str, Any]:
    spread = tokens_per_s, 0.9 * tokens_per_s, 1.2 * tokens_per_s
    return {"decoding": decoding, "execution": execution, "passes_per_block": passes, "tokens_per_s": spread}


FIGURES = [
    figures_of("ntp", "stepwise", 16, 100),
    figures_of("mdm_1", "stepwise", 1, 900),
    figures_of("mdm_1", "compiled", 1, 1800),
]


@pytest.mark.parametrize(
    ("word_error_rates", "places"),
    [
        (None, {(16, 100), (1, 900), (1, 1800)}),
        ({"mdm_1": 0.25}, {(25, 900), (25, 1800)}),
    ],
)
def test_speed_stands_over_passes_or_over_quality(word_error_rates: Any, places: set[tuple[float, float]]) -> None:
    (axes,) = draw_pareto(FIGURES, word_error_rates).axes
    assert {text.xy for text in axes.texts} == places
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["stepwise", "compiled"]
    assert len({container.lines[0].get_color() for container in axes.containers}) == 2, "a colour per execution"


def test_stages_follow_each_other() -> None:
    rows = {
        "ntp, stepwise": {"speech encoder": 3.0, "talker": 50.0, "vocoder": 4.0},
        "mdm_1, stepwise": {"talker": 5.0},
    }
    (axes,) = draw_waterfall(rows).axes
    bars = [(bar.get_x(), bar.get_width()) for container in axes.containers for bar in container]
    assert [bar for bar in bars[::2] if bar[1]] == [(0.0, 3.0), (3.0, 50.0), (53.0, 4.0)]
    assert [text.get_text().strip() for text in axes.texts] == ["57.0 ms", "5.0 ms"]

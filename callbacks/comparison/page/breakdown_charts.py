"""Plots of where word errors sit: by length of the reply and by kind of query."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from callbacks.comparison.page.groups import Experiment, label_of
from callbacks.comparison.page.table import Cell, first_row, row_names
from lightning_modules.evaluation.error_breakdown import ErrorGroup, errors_by_kind
from lightning_modules.evaluation.text_normalization import normalize_text

Chart = dict[str, Any]

MOST_LENGTHS = 5
HEAT = [[0.0, "#dce6f0"], [0.3, "#f0c9a4"], [1.0, "#a5281f"]]


def error_bars(cells: Sequence[Cell], axis: str) -> dict[str, Any]:
    """Give the whiskers of points, from their bounds."""
    above = [0.0 if cell.high is None or cell.value is None else max(0.0, cell.high - cell.value) for cell in cells]
    below = [0.0 if cell.low is None or cell.value is None else max(0.0, cell.value - cell.low) for cell in cells]
    whiskers = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1, "width": 3}
    return {f"error_{axis}": whiskers}


def _pairs(experiment: Experiment, name: str) -> list[tuple[str, str, str | None]]:
    return [
        (one["text"], one["heard"], one.get("kind"))
        for run in experiment.runs
        for one in run.transcripts
        if one["decoding"] == name
    ]


def draw_lengths(experiments: Sequence[Experiment], style: Callable[[int, str | None], dict[str, str]]) -> Chart:
    """Draw word errors over the number of words, in groups of about as many replies.

    Args:
        experiments: What is compared.
        style: Gives the line of a talker, None for a reference, in the experiment of a number.

    Returns:
        A line per decoding, of which one per talker shows at first.
    """
    everything = [one for e in experiments for name in row_names([e]) for one in _pairs(e, name)]
    edges = _edges([len(normalize_text(text).split()) for text, _, _ in everything])
    data, shown = [], set()
    for number, experiment in enumerate(experiments):
        for name in row_names([experiment]):
            talker = first_row([experiment], name)["talker"]
            pairs = _pairs(experiment, name)
            lengths = [_bin(len(normalize_text(text).split()), edges) for text, _, _ in pairs]
            groups = errors_by_kind([(text, heard) for text, heard, _ in pairs], lengths).groups
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label_of(experiments, experiment, name),
                    "x": [_name_bin(int(str(group.key)), edges) for group in groups],
                    "y": [100 * group.rate.value for group in groups],
                    "line": style(number, talker),
                    "visible": "legendonly" if (number, talker) in shown or talker is None else True,
                    "customdata": [group.num_utterances for group in groups],
                    "hovertemplate": "%{fullData.name}<br>%{x}: WER %{y:.1f} % of %{customdata} replies<extra></extra>",
                    **_group_bars(groups),
                }
            )
            shown.add((number, talker))
    order = [_name_bin(index, edges) for index in range(len(edges) + 1)]
    layout = {
        "xaxis": {
            "title": {"text": "words of the reply"},
            "type": "category",
            "categoryorder": "array",
            "categoryarray": order,
        },
        "yaxis": {"title": {"text": "WER (%)"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def _group_bars(groups: Sequence[ErrorGroup]) -> dict[str, Any]:
    cells = [Cell(*(100 * x for x in (g.rate.value, g.rate.low, g.rate.high)), "", "") for g in groups]
    return error_bars(cells, "y")


def _edges(lengths: Sequence[int]) -> list[int]:
    """Give the longest length of each group but the last, so that groups hold about as many replies."""
    if not lengths:
        return []
    quantiles = np.quantile(lengths, np.linspace(0, 1, MOST_LENGTHS + 1)[1:-1], method="inverted_cdf")
    return sorted({int(edge) for edge in quantiles if edge < max(lengths)})


def _bin(length: int, edges: Sequence[int]) -> int:
    return sum(length > edge for edge in edges)


def _name_bin(index: int, edges: Sequence[int]) -> str:
    low = edges[index - 1] + 1 if index else None
    high = edges[index] if index < len(edges) else None
    if low is None:
        return "all" if high is None else f"up to {high}"
    return f"{low} and more" if high is None else f"{low}" if low == high else f"{low} to {high}"


def draw_kinds(experiments: Sequence[Experiment]) -> Chart | None:
    """Draw word errors of each row and kind of query as a field of colours; None if no kinds are known."""
    named = [(experiment, name) for name in row_names(experiments) for experiment in experiments]
    broken_down, labels, counts = [], [], {}
    for experiment, name in named:
        pairs = [one for one in _pairs(experiment, name) if one[2] is not None]
        if not pairs:
            continue
        groups = errors_by_kind([(text, heard) for text, heard, _ in pairs], [kind for _, _, kind in pairs]).groups
        broken_down.append({str(group.key): 100 * group.rate.value for group in groups})
        labels.append(label_of(experiments, experiment, name))
        for group in groups:
            counts[str(group.key)] = max(group.num_utterances, counts.get(str(group.key), 0))
    if not broken_down:
        return None
    kinds = sorted(counts, key=lambda kind: -counts[kind])
    values = [[rates.get(kind) for kind in kinds] for rates in broken_down]
    data = {
        "type": "heatmap",
        "x": [f"{kind} ({counts[kind]})" for kind in kinds],
        "y": labels,
        "z": values,
        "text": [["" if value is None else f"{value:.0f}" for value in row] for row in values],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}<br>%{x}: WER %{z:.1f} %<extra></extra>",
        "colorscale": HEAT,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"title": {"text": "WER (%)"}},
    }
    layout = {
        "height": max(300, 150 + 24 * len(labels)),
        "xaxis": {"automargin": True, "type": "category", "title": {"text": "kind of query (replies)"}},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    return {"data": [data], "layout": layout}

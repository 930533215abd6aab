"""The plots of the page, as plotly reads them: data and layout without colours of background and text.

The page gives those, so that plots are dark where the page is.
"""

from collections.abc import Callable, Sequence
from typing import Any

from callbacks.comparison.page.breakdown_charts import Chart, draw_kinds, draw_lengths, error_bars
from callbacks.comparison.page.groups import Experiment, label_of
from callbacks.comparison.page.run_files import Json
from callbacks.comparison.page.table import FIRST_CHUNK, RTF, STEPS, WER, Cell, Figure, first_row, measure, row_names

# by talker, told apart by people who see colours differently, on white and on black
TALKER_COLOURS = ("#3b7dd8", "#159f8c", "#e8762c", "#c84fc0", "#b99a12", "#6d5bd0", "#d6455d", "#5f8f2f")
REFERENCE_COLOUR = "#8a8f98"
STAGES = {"speech_encoder": "#7c8aa5", "thinker": "#9b7bd1", "talker": "#e8762c", "vocoder": "#159f8c"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")


def talker_colours(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Give each talker a colour, the same in all plots."""
    rows = [first_row(experiments, name) for name in row_names(experiments)]
    talkers = list(dict.fromkeys(row["talker"] for row in rows if row["talker"] is not None))
    return {talker: TALKER_COLOURS[index % len(TALKER_COLOURS)] for index, talker in enumerate(talkers)}


def draw_charts(experiments: Sequence[Experiment]) -> dict[str, Chart]:
    """Draw everything that can be drawn of these experiments.

    Args:
        experiments: What is compared.

    Returns:
        Plots by name: `pareto`, `steps`, `first_chunk`, `lengths`, and `kinds` if the tests know kinds of queries.
    """
    charts = {
        "pareto": _draw_wer_over(experiments, RTF, "real-time factor of the talker", with_front=True),
        "steps": _draw_wer_over(experiments, STEPS, "steps per block"),
        "first_chunk": _draw_first_chunk(experiments),
        "lengths": draw_lengths(experiments, style_of(experiments)),
    }
    kinds = draw_kinds(experiments)
    return charts | ({} if kinds is None else {"kinds": kinds})


def style_of(experiments: Sequence[Experiment]) -> Callable[[int, str | None], dict[str, str]]:
    """Give the line of a talker, None for a reference, in the experiment of this number."""
    colours = talker_colours(experiments)
    return lambda number, talker: {
        "color": REFERENCE_COLOUR if talker is None else colours[talker],
        "dash": DASHES[number % len(DASHES)],
    }


def _series_of(row: Json) -> str:
    return str(row["talker"]) + (f" ({row['rule']})" if row["rule"] else "")


def _draw_wer_over(experiments: Sequence[Experiment], over: Figure, title: str, with_front: bool = False) -> Chart:
    style, data, points = style_of(experiments), [], []
    shapes = []
    for number, experiment in enumerate(experiments):
        series: dict[str, list[str]] = {}
        for name in row_names([experiment]):
            row = first_row([experiment], name)
            if row["talker"] is None:
                cell = measure(experiment, name, WER)
                if cell.value is not None and not number:  # those of further experiments would lie over each other
                    shapes.append(_reference_line(cell, name, len(shapes) % 2 == 1))
            else:
                series.setdefault(_series_of(row), []).append(name)
        for index, (label, names) in enumerate(series.items()):
            cells = [(name, measure(experiment, name, over), measure(experiment, name, WER)) for name in names]
            known = [(name, x, y) for name, x, y in cells if x.value and y.value is not None]
            known.sort(key=lambda one: one[1].value or 0.0)
            if not known:
                continue
            first = first_row([experiment], names[0])
            points += [(x.value, y.value) for _, x, y in known]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label_of(experiments, experiment, label),
                    "x": [x.value for _, x, _ in known],
                    "y": [y.value for _, _, y in known],
                    "text": [_hover(experiment, name) for name, _, _ in known],
                    "hovertemplate": "%{text}<extra></extra>",
                    "line": style(number, first["talker"]),
                    "marker": {"size": 9, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                    **error_bars([y for _, _, y in known], "y"),
                }
            )
    if with_front and points:
        data.insert(0, _front(points))
    # Steps and real-time factors are compared by their ratios.
    layout = {
        "xaxis": {"title": {"text": title}, "type": "log", **({} if with_front else _ticks(data))},
        "yaxis": {"title": {"text": "WER (%)"}, "rangemode": "tozero"},
        "shapes": [one["shape"] for one in shapes],
        "annotations": [one["annotation"] for one in shapes],
    }
    return {"data": data, "layout": layout}


def _ticks(data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = sorted({x for trace in data for x in trace["x"]})
    return {"tickvals": values, "ticktext": [f"{value:g}" for value in values]}


def _hover(experiment: Experiment, name: str) -> str:
    wer, rtf, first = (measure(experiment, name, figure) for figure in (WER, RTF, FIRST_CHUNK))
    spread = f" ({wer.spread})" if wer.spread else ""
    return (
        f"<b>{name}</b> ({experiment.label})<br>WER {wer.text} %{spread}<br>RTF {rtf.text}, first chunk {first.text} ms"
    )


def _front(points: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Draw the points that no other one beats in both as a step line."""
    best: list[tuple[float, float]] = []
    for x, y in sorted((x, y) for x, y in points if x is not None and y is not None):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "best trade-off",
        "x": [x for x, _ in best],
        "y": [y for _, y in best],
        "line": {"shape": "hv", "color": REFERENCE_COLOUR, "width": 8},
        "opacity": 0.25,
        "hoverinfo": "skip",
    }


def _reference_line(cell: Cell, name: str, is_left: bool) -> dict[str, Any]:
    """Draw a line across the plot, with its name at one end: two references may be close to each other."""
    at = {"xref": "paper", "yref": "y"}
    line = {"color": REFERENCE_COLOUR, "dash": "dot", "width": 1.5}
    shape = {"type": "line", "x0": 0, "x1": 1, "y0": cell.value, "y1": cell.value, "line": line, **at}
    text = {"x": 0, "xanchor": "left"} if is_left else {"x": 1, "xanchor": "right"}
    text |= {"y": cell.value, "yanchor": "bottom", "text": f"{name} {cell.text}", "showarrow": False}
    return {"shape": shape, "annotation": {**text, "font": {"size": 10}, **at}}


def _draw_first_chunk(experiments: Sequence[Experiment]) -> Chart:
    """Draw the waterfall: what each stage adds to the time until the first samples."""
    named = [(experiment, name) for name in row_names(experiments) for experiment in experiments]
    named = [
        (experiment, name) for experiment, name in named if measure(experiment, name, FIRST_CHUNK).value is not None
    ]
    labels = [label_of(experiments, experiment, name) for experiment, name in named]
    data, base = [], [0.0] * len(named)
    for stage, colour in STAGES.items():
        part = Figure(stage, "", lambda row, stage=stage: row["first_chunk_ms"].get(stage))  # type: ignore[misc]
        values = [measure(experiment, name, part).value or 0.0 for experiment, name in named]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": stage.replace("_", " "),
                "y": labels,
                "x": values,
                "base": base,
                "marker": {"color": colour},
                "text": [f"{value:.0f}" if value >= 1 else "" for value in values],
                "textposition": "inside",
                "hovertemplate": f"%{{y}}<br>{stage.replace('_', ' ')}: %{{text}} ms<extra></extra>",
            }
        )
        base = [before + value for before, value in zip(base, values, strict=True)]
    layout = {
        "barmode": "overlay",
        "height": max(260, 90 + 24 * len(named)),
        "xaxis": {"title": {"text": "ms until the first samples"}},
        "yaxis": {"autorange": "reversed", "automargin": True},
    }
    return {"data": data, "layout": layout}

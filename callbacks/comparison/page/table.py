"""The table of the page: a row per decoding, a column per figure and experiment."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from callbacks.comparison.page.groups import Experiment
from callbacks.comparison.page.run_files import Json

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A figure of a row.

    Attributes:
        title: Head of its column.
        what: What it is, in a sentence.
        value: Reads it from a row of `results.json`; None if the row has none.
        bounds: Reads its 95 % interval; None if it has none.
        scale: Factor for people, 100 for percentages.
        digits: Behind the point.
    """

    title: str
    what: str
    value: Callable[[Json], float | None]
    bounds: Callable[[Json], Bounds | None] = lambda row: None
    scale: float = 1.0
    digits: int = 2


@dataclass(frozen=True)
class Cell:
    """One figure of one row: value and bounds, scaled for people, and as text; None and "" if there is none."""

    value: float | None
    low: float | None
    high: float | None
    text: str
    spread: str


def _key(name: str) -> Callable[[Json], float | None]:
    return lambda row: row.get(name)


def _within(group: str, name: str) -> Callable[[Json], float | None]:
    return lambda row: (row.get(group) or {}).get(name)


def _interval(name: str) -> Callable[[Json], Bounds | None]:
    return lambda row: (row.get("intervals") or {}).get(name)


WER = Figure(
    "WER %",
    "Word errors of the speech against the thinker's own text, over all words.",
    _key("wer_micro"),
    lambda row: row.get("wer_interval"),
    100,
)
RTF = Figure(
    "RTF",
    "Seconds of the talker alone per second of speech, median over the dialogues; below 1 it is faster than it speaks.",
    _key("rtf"),
    _interval("rtf"),
    digits=4,
)
FIRST_CHUNK = Figure(
    "first chunk ms",
    "Milliseconds until the first samples: speech encoder, thinker, talker and vocoder, median over the dialogues.",
    _within("first_chunk_ms", "total"),
    _interval("first_chunk_ms"),
    digits=0,
)
STEPS = Figure("steps", "Decoding steps per block.", _key("steps"), digits=0)
FIGURES = (
    STEPS,
    WER,
    Figure(
        "gold WER %",
        "Word errors against the gold reply: the thinker's mistakes count, too.",
        _key("wer_gold_micro"),
        lambda row: row.get("wer_gold_interval"),
        100,
    ),
    Figure("text exact %", "Replies whose text equals the gold one.", _key("text_exact_match"), scale=100, digits=1),
    RTF,
    Figure("tokens/s", "Speech tokens per second of the talker alone.", _key("tokens_per_s"), digits=0),
    Figure("passes/block", "Passes of the network per block.", _key("forwards_per_block")),
    FIRST_CHUNK,
    Figure("length", "Speech tokens over those of the gold replies.", _key("length_ratio"), digits=3),
    *(
        Figure(f"{kind} %", what, _within("failures", kind), scale=100, digits=0)
        for kind, what in (
            ("empty", "Replies of no sound."),
            ("truncated", "Replies that were cut off before they ended."),
            ("repeating", "Replies whose tokens are caught in a loop."),
        )
    ),
    Figure(
        "timbre drift",
        "Change of the mel spectrum's shape where chunks meet over that elsewhere; 1 means that borders do not show.",
        _within("sound", "timbre_drift"),
        _interval("timbre_drift"),
    ),
    Figure(
        "level drift",
        "Change of loudness where chunks meet over that elsewhere; 1 means that borders do not show.",
        _within("sound", "loudness_drift"),
        _interval("loudness_drift"),
    ),
    Figure("silence %", "Share of frames that are silent.", _within("sound", "silent_share"), scale=100, digits=1),
    Figure("said again %", "Words that repeat what was just said.", _within("sound", "repeated_share"), scale=100),
    Figure("MOS", "Naturalness, predicted.", _within("sound", "naturalness"), _interval("naturalness")),
)  # fmt: skip


def row_names(experiments: Sequence[Experiment]) -> list[str]:
    """Give the names of all rows, in the order in which they appear."""
    return list(dict.fromkeys(name for experiment in experiments for run in experiment.runs for name in run.rows))


def first_row(experiments: Sequence[Experiment], name: str) -> Json:
    """Give a row of that name, for what all rows of that name have in common."""
    return next(run.rows[name] for experiment in experiments for run in experiment.runs if name in run.rows)


def measure(experiment: Experiment, name: str, figure: Figure) -> Cell:
    """Give a figure of an experiment: of its one run with the interval, or the mean over seeds with their spread.

    Args:
        experiment: Of one seed or several.
        name: Of the row.
        figure: What is asked for.

    Returns:
        Value and bounds; bounds are the 95 % interval over dialogues for one seed, else the lowest and the highest.
    """
    rows = [run.rows[name] for run in experiment.runs if name in run.rows]
    values = [value for row in rows if (value := figure.value(row)) is not None and math.isfinite(value)]
    if not values:
        return Cell(None, None, None, "", "")
    bounds = figure.bounds(rows[0]) if len(rows) == 1 else (min(values), max(values))
    low, high = bounds if bounds is not None and all(map(math.isfinite, bounds)) else (None, None)
    value, low, high = (None if one is None else figure.scale * one for one in (fmean(values), low, high))
    assert value is not None
    text = f"{value:.{figure.digits}f}"
    spread = "" if low is None or high is None else f"{low:.{figure.digits}f} to {high:.{figure.digits}f}"
    return Cell(value, low, high, text, "" if spread == f"{text} to {text}" else spread)


def lay_out(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Lay out the table for the template: figures that some row has, and the cells of each row.

    Args:
        experiments: Columns of each figure.

    Returns:
        ``figures``: title and sentence of each; ``rows``: name, talker, rule, and a list of cells per figure.
    """
    names = row_names(experiments)
    voices = list(
        dict.fromkeys(v for e in experiments for r in e.runs for row in r.rows.values() for v in row["voices"])
    )
    figures = [*FIGURES, *(_voice(voice) for voice in voices)]
    cells = {
        (name, figure.title): [measure(experiment, name, figure) for experiment in experiments]
        for name in names
        for figure in figures
    }
    shown = [one for one in figures if any(cell.value is not None for name in names for cell in cells[name, one.title])]
    rows = []
    for name in names:
        row = first_row(experiments, name)
        of_figures = [cells[name, figure.title] for figure in shown]
        rows.append({"name": name, "talker": row["talker"], "rule": row["rule"], "cells": of_figures})
    return {"figures": [{"title": one.title, "what": one.what} for one in shown], "rows": rows}


def _voice(voice: str) -> Figure:
    return Figure(f"voice {voice} %", "Replies heard in this voice.", _within("voices", voice), scale=100, digits=0)

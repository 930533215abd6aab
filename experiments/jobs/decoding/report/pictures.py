"""The pictures of a benchmark: speed over passes, quality or replies at once, and the first chunk as a waterfall."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.jobs.decoding.first_chunk import STAGES
from experiments.jobs.decoding.statistics import Spread


def draw_pareto(figures: Sequence[Mapping[str, Any]], word_error_rates: Mapping[str, float] | None = None) -> Figure:
    """Draw tokens per second over word error rate, or over passes per block where none is known.

    Args:
        figures: Of each decoding under each execution.
        word_error_rates: By decoding, as shares; decodings without one are left out.

    Returns:
        The figure: a line per execution, a point per decoding with the ends of its spread.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, execution in enumerate(dict.fromkeys(one["execution"] for one in figures)):
        own = [one for one in figures if one["execution"] == execution]
        if word_error_rates is None:
            points = [(one["passes_per_block"], one) for one in own]
        else:
            known = [one for one in own if one["decoding"] in word_error_rates]
            points = [(100 * word_error_rates[one["decoding"]], one) for one in known]
        for x, one in points:
            median, low, high = one["tokens_per_s"]
            axes.errorbar(
                x, median, [[median - low], [high - median]], fmt="o", color=f"C{number}", capsize=3, markersize=5
            )
            axes.annotate(one["decoding"], (x, median), textcoords="offset points", xytext=(5, 4), fontsize="x-small")
        axes.plot([], [], "o", color=f"C{number}", label=execution)
    axes.set(yscale="log", ylabel="tokens per second")
    if word_error_rates is None:
        axes.set(xscale="log", xlabel="passes per block")
    else:
        axes.set(xlabel="WER (%)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_waterfall(stages_ms: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw when the first samples are there, stage by stage.

    Args:
        stages_ms: Milliseconds of each of `STAGES`, by what is shown in a row of its own.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(9, 1.4 + 0.32 * len(stages_ms)), layout="constrained")
    axes = figure.subplots()
    starts = dict.fromkeys(stages_ms, 0.0)
    for number, stage in enumerate(STAGES):
        widths = [row.get(stage, 0.0) for row in stages_ms.values()]
        axes.barh(list(stages_ms), widths, left=list(starts.values()), color=f"C{number}", label=stage)
        for name, width in zip(starts, widths, strict=True):
            starts[name] += width
    for name, end in starts.items():
        axes.annotate(f" {end:,.1f} ms", (end, name), va="center", fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="ms from the end of the query")
    figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize="small")
    return figure


def draw_throughput(rates: Mapping[str, Mapping[int, Spread]]) -> Figure:
    """Draw tokens per second over replies at once, a line per decoding and execution."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, by_size in rates.items():
        medians = [one.median for one in by_size.values()]
        below = [one.median - one.low for one in by_size.values()]
        above = [one.high - one.median for one in by_size.values()]
        axes.errorbar(list(by_size), medians, [below, above], fmt="o-", capsize=3, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="replies at once", ylabel="tokens per second, all replies together")
    sizes = sorted({size for by_size in rates.values() for size in by_size})
    axes.set_xticks(sizes, labels=list(map(str, sizes)))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure

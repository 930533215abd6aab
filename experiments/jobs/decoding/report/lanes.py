"""The picture of whole replies: when each part was at work, one after the other or at the same time."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lightning_modules.inference.timeline import STAGES


def draw_lanes(replies: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Draw the work of each part over time, a group of lanes per reply.

    Args:
        replies: By case and pipeline, as :meth:`PipelineRounds.measure` gives them.

    Returns:
        The figure: a row of axes per case and pipeline, a lane per part, a line where the first samples came.
    """
    rows = [(f"{case}\n{name}", one) for case, own in replies.items() for name, one in own.items()]
    figure = Figure(figsize=(10, 0.7 + 1.05 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0]
    for axes, (title, one) in zip(all_axes, rows, strict=True):
        for lane, stage in enumerate(STAGES):
            spans = [span for span in one["spans"] if span["stage"] == stage]
            pieces = [(1000 * span["start_s"], 1000 * (span["end_s"] - span["start_s"])) for span in spans]
            axes.broken_barh(pieces, (lane + 0.1, 0.8), facecolor=f"C{lane}", edgecolor="white", linewidth=0.4)
        first_ms = 1000 * one["heard_s"]
        axes.axvline(first_ms, color="black", linewidth=0.8)
        axes.annotate(f" {first_ms:,.0f} ms", (first_ms, 0.5), va="center", fontsize="x-small")
        axes.set(ylim=(len(STAGES), 0), yticks=[])
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize="small")
    all_axes[-1].set_xlabel("ms from the end of the query; a line where the first samples are there")
    patches = [Patch(color=f"C{lane}", label=stage.replace("_", " ")) for lane, stage in enumerate(STAGES)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(STAGES), fontsize="small")
    return figure

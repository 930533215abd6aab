"""What a benchmark leaves for people: a summary in words and tables, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.formats.atomic_files import write_text
from experiments.jobs.decoding.report.figures import MachineRates
from experiments.jobs.decoding.report.lanes import draw_lanes
from experiments.jobs.decoding.report.pictures import draw_pareto, draw_throughput, draw_waterfall
from experiments.jobs.decoding.report.tables import batch_table, cost_table, introduction, pipeline_table, speed_table

DPI = 120


def write_report(folder: Path, measured: Mapping[str, Any], rates: MachineRates, baseline: str, reference: str) -> None:
    """Write `summary.txt` and the pictures of what was measured.

    Args:
        folder: Where.
        measured: The content of `measured.json`.
        rates: What the machine can do at best.
        baseline: The decoding that others are held against.
        reference: The execution that others are held against.
    """
    figures, throughput = list(measured["cases"].values()), measured["tokens_per_s_of_batches"]
    whole_replies, word_error_rates = measured["whole_replies"], measured["word_error_rates"]
    tables = [speed_table(figures, baseline, reference), cost_table(figures)]
    pictures = {"speed_over_passes": draw_pareto(figures), "waterfall": draw_waterfall(measured["first_chunk_ms"])}
    if throughput:
        tables.append(batch_table(throughput))
        pictures["batches"] = draw_throughput(throughput)
    if whole_replies:
        tables.append(pipeline_table(whole_replies))
        pictures["whole_replies"] = draw_lanes(whole_replies)
    if word_error_rates is not None:
        pictures["pareto"] = draw_pareto(figures, word_error_rates)
    write_text(folder / "summary.txt", "\n".join([introduction(measured["about"], rates), *tables]))
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)

"""The tables of a benchmark, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.jobs.decoding.report.figures import MachineRates
from experiments.jobs.decoding.statistics import Spread


def speed_table(figures: Sequence[Mapping[str, Any]], baseline: str, reference: str) -> str:
    """Give speeds and ratios, a row per decoding and execution."""
    head = (
        "decoding", "execution", "passes per block", "rounds", "tokens/s (10th to 90th percentile)",
        "ms per pass", "RTF", "first chunk, ms", f"against {baseline}, same execution",
        f"against {reference}, same decoding", "same tokens",
    )  # fmt: skip
    rows = []
    for one in figures:
        rows.append((
            one["decoding"], one["execution"], f"{one['passes_per_block']:.4g}", str(one["num_rounds"]),
            _spread(one["tokens_per_s"]), _number(one["ms_per_pass"][0]), f"{one['rtf']:.3g}",
            _number(one["first_chunk_ms"][0]),
            _ratio(one["against_baseline"]), _ratio(one["against_reference"]),
            _share(one["same_tokens_as_reference"]) if one["execution"] != reference else "",
        ))  # fmt: skip
    return markdown(head, rows)


def cost_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Give what a block costs, and what shares of the machine's rates are used, a row per decoding and execution."""
    on_gpu = any("num_kernels_per_block" in one for one in figures)
    head = [
        "decoding", "execution", "of the bandwidth floor", "floor, tokens/s", "operations per byte", "rows per pass",
        "of the matrix peak", "operators per block", "host reads per block",
    ]  # fmt: skip
    head += ["kernels per block", "launches per block", "waits per block", "peak memory, GB"] if on_gpu else []
    rows = []
    for one in figures:
        row = [
            one["decoding"], one["execution"], f"{one['share_of_bandwidth_floor']:.1%}",
            _number(one["floor_tokens_per_s"]), f"{one['operations_per_byte']:.3g}", f"{one['rows_per_pass']:.3g}",
            f"{one['share_of_matrix_peak']:.1%}", f"{one['num_operators_per_block']:,}",
            f"{one['num_host_reads_per_block']:,}",
        ]  # fmt: skip
        if on_gpu:
            row += [f"{one[f'num_{name}_per_block']:,}" for name in ("kernels", "launches", "waits")]
            row.append(f"{one['peak_memory_gb']:.2f}")
        rows.append(row)
    return markdown(head, rows)


def batch_table(rates: Mapping[str, Mapping[int, Spread]]) -> str:
    """Give tokens per second of many replies at once, a row per decoding and execution."""
    sizes = sorted({size for by_size in rates.values() for size in by_size})
    head = ["tokens/s of replies at once", *map(str, sizes)]
    rows = [[name, *(_spread(own[size]) if size in own else "" for size in sizes)] for name, own in rates.items()]
    return markdown(head, rows)


def introduction(about: Mapping[str, Any], rates: MachineRates) -> str:
    """Say on which machine, at what load and how often was measured, and what the machine can do."""
    read = ", ".join(f"{rate / 1e9:.1f} of {size / 1e6:,.0f} MB" for size, rate in rates.read.items())
    matrix = ", ".join(f"{rate / 1e9:,.0f} with {rows}" for rows, rate in rates.matrix.items())
    return (
        f"{_conditions(about)}; {about['num_rounds']} rounds of {about['num_blocks']} blocks, interleaved. Medians; "
        "ratios round by round with 95 % intervals.\n"
        f"Read: {rates.main_memory / 1e9:.1f} GB/s of main memory; GB/s of buffers as large as the weights of a pass: "
        f"{read}.\nMatrix products with a weight in the cache, 1e9 operations/s by rows: {matrix}.\n"
    )


def reply_table(figures: Sequence[Mapping[str, Any]], baseline: str, reference: str) -> str:
    """Give how fast texts were spoken, a row per decoding and execution."""
    head = (
        "decoding", "execution", "passes per block", "tokens/s (10th to 90th percentile)",
        f"against {reference}, same decoding", f"against {baseline}, same execution", f"tokens as {reference}",
        "prepared in s",
    )  # fmt: skip
    rows = []
    for one in figures:
        is_reference = one["execution"] == reference or one["num_equal_tokens"] is None
        rows.append((
            one["decoding"], one["execution"], f"{one['passes_per_block']:.4g}", _spread(one["tokens_per_s"]),
            _ratio(one["against_reference"]), _ratio(one["against_baseline"]),
            "" if is_reference else f"{one['num_equal_tokens']:,} of {one['num_compared_tokens']:,}",
            _number(one["setup_s"]),
        ))  # fmt: skip
    return markdown(head, rows)


def reply_introduction(about: Mapping[str, Any], left_out: Mapping[str, Sequence[str]]) -> str:
    """Say what was spoken on which machine, and what was left out."""
    silent = f" {about['num_silent']} more do not count: a talker said nothing to them." if about["num_silent"] else ""
    lines = [
        f"{about['run']}: {about['num_queries']} test queries, all cases of one query in turn.{silent} Medians over "
        f"queries; ratios query by query with 95 % intervals. {_conditions(about)}.",
        *(f"{execution} is left out for {', '.join(names)}." for execution, names in left_out.items()),
    ]
    return "\n".join(lines) + "\n"


def pipeline_table(replies: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Lay out how soon the first and the last samples of whole replies come, under each pipeline."""
    head = ["reply", "pipeline", "first samples ms", "against the first", "last samples ms", "against the first"]
    rows = []
    for case, own in replies.items():
        for name, one in own.items():
            row = [case, name]
            for what in ("first_chunk_s", "seconds"):
                against = one[f"{what.removesuffix('_s')}_against_first"]
                row += [_spread([1000 * value for value in one[what]]), _ratio(against)]
            rows.append(row)
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _conditions(about: Mapping[str, Any]) -> str:
    where = f"{about['device']}, {about['processor']}" if about["device"] != "cpu" else about["processor"]
    load = "{:.1f} before, {:.1f} after".format(*about["load"])
    how = f"{about['threads']} thread(s), {about['clock']} clock; {about['dtype']}"
    return f"{where}; {how}; commit {str(about['commit'])[:8]}; load {load}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _spread(values: Sequence[float]) -> str:
    median, low, high = map(_number, values)
    return f"{median} ({low} to {high})"


def _ratio(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

"""The command line of results: one table from the comparisons of several runs, as Markdown with mean and spread."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.errors import is_users_mistake, text_of  # noqa: E402

COLUMNS = (
    ("WER %", "wer_micro", 100.0, 2),
    ("macro", "wer_macro", 100.0, 2),
    ("text exact %", "text_exact_match", 100.0, 1),
    ("tokens/s", "tokens_per_s", 1.0, 0),
    ("passes a block", "forwards_per_block", 1.0, 1),
)

Rows = dict[tuple[str, int | None], dict[str, Any]]


def read_run(run: Path) -> tuple[int | None, Rows]:
    """Read the comparison of one run.

    Args:
        run: Directory of a stage that ended with a comparison.

    Returns:
        Its seed, and its rows by talker and decoding steps.

    Raises:
        FileNotFoundError: If it holds no comparison.
    """
    results, config = run / "results.json", run / "config.yaml"
    if not results.is_file() or not config.is_file():
        raise FileNotFoundError(f"{run} holds no comparison; give the directory of a finished stage with test: true")
    rows = json.loads(results.read_text(encoding="utf-8"))
    return OmegaConf.load(config).get("seed"), {(row["talker"], row["steps"]): row for row in rows}


def tabulate(runs: Sequence[Path]) -> str:
    """Lay out the rows that all runs have in common.

    Args:
        runs: Directories of stages that compared the same talkers, one a seed.

    Returns:
        A Markdown table: the mean, and where there are several runs the sample standard deviation behind it.

    Raises:
        FileNotFoundError: If a run holds no comparison.
        ValueError: If two runs have one seed, or compared different talkers.
    """
    read = [read_run(run) for run in runs]
    seeds = [seed for seed, _ in read]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}; give one run a seed, or the spread says nothing")
    first = read[0][1]
    for run, (_, rows) in zip(runs, read, strict=True):
        if rows.keys() != first.keys():
            odd = sorted(map(str, rows.keys() ^ first.keys()))
            raise ValueError(f"{run} and {runs[0]} differ in what they compared: {', '.join(odd)}; give runs alike")
    lines = [f"| talker | steps | {' | '.join(title for title, *_ in COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for talker, steps in first:
        cells = []
        for _, name, scale, digits in COLUMNS:
            values = [rows[talker, steps][name] for _, rows in read]
            cells.append(_cell([scale * value for value in values if value is not None], digits))
        lines.append(f"| {talker} | {steps or '-'} | {' | '.join(cells)} |")
    counts = sorted({row["num_examples"] for _, rows in read for row in rows.values()})
    named = ", ".join(str(seed) for seed in sorted(seeds, key=str))
    dialogues = " or ".join(map(str, counts))
    what = "mean ± standard deviation over seeds" if len(runs) > 1 else "seed"
    return "\n".join([*lines, "", f"{what} {named}; {dialogues} test dialogues a run"])


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one stage, one a seed")
    try:
        print(tabulate(parser.parse_args(arguments).runs))
    except (ValueError, FileNotFoundError) as error:
        if not is_users_mistake(error):
            raise
        print(f"error: {text_of(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

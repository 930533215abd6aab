"""The command line of results: tables over the seeds of finished experiments, as Markdown with mean and spread."""

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

from experiments.engine.configuration import config  # noqa: E402
from experiments.engine.configuration.errors import ConfigError, report_mistake  # noqa: E402
from experiments.engine.plan import make_plan  # noqa: E402
from lightning_modules.errors import UserError  # noqa: E402

COLUMNS = (
    ("WER %", "wer_micro", 100.0, 2),
    ("macro", "wer_macro", 100.0, 2),
    ("text exact %", "text_exact_match", 100.0, 1),
    ("tokens/s", "tokens_per_s", 1.0, 0),
    ("passes per block", "forwards_per_block", 1.0, 1),
)

Rows = dict[str, dict[str, Any]]


def write_page(names: Sequence[str], overrides: list[str], seeds: Sequence[int], key: str = "seed") -> str:
    """Lay out the results of experiments that were run with several seeds.

    Args:
        names: Experiments, each a shipped one or a file.
        overrides: `key=value` texts that they were run with, beside the seed.
        seeds: Seeds that they were run with.
        key: What they were given as.

    Returns:
        Markdown: for each experiment what it is, the command, and a table for each of its comparisons.

    Raises:
        ConfigError: A mistake in an experiment, or one that was not run, with the command that runs it.
        UserError: An experiment that compares nothing.
    """
    given = "".join(f" {override}" for override in overrides)
    command = f"python experiments/report.py {' '.join(names)}{given} --seeds {','.join(map(str, seeds))}"
    command += "" if key == "seed" else f" --key {key}"
    parts = ["# Results", f"Made from finished runs by `{command}`."]
    for name in names:
        file = config.find_file(name, Path.cwd())
        plans = [make_plan(file, [*overrides, f"{key}={seed}"]) for seed in seeds]
        commands = [f"python experiments/run.py {name}{given} {key}={seed}" for seed in seeds]
        for plan, one in zip(plans, commands, strict=True):
            unfinished = [planned.stage.name for planned in plan.stages if not planned.run.is_finished]
            if unfinished:
                raise ConfigError("", f"{name}: {', '.join(unfinished)} is not finished; run first: {one}")
        runs = zip(*([planned.run.directory for planned in plan.stages] for plan in plans), strict=True)
        tables = [table for same in runs for table in _tables_of(same, seeds)]
        if not tables:
            raise UserError(f"{name} compares and measures nothing; give an experiment that does")
        parts += [
            f"## {name}",
            f"{plans[0].pipeline.description}.",
            "```bash\n" + "\n".join(commands) + "\n```",
            *tables,
        ]
    return "\n\n".join(parts)


def _tables_of(runs: Sequence[Path], seeds: Sequence[int]) -> list[str]:
    """Lay out what one stage compared, over its seeds, or measured, as it wrote it down for the first of them."""
    if (runs[0] / "results.json").is_file():
        return [tabulate(runs)]
    measured = runs[0] / "results.md"
    if not measured.is_file():
        return []
    return [f"`{runs[0].name.rsplit('-', 1)[0]}`, seed {seeds[0]}:", measured.read_text(encoding="utf-8").strip()]


def read_run(run: Path) -> tuple[int | None, Rows]:
    """Read the comparison of one run.

    Args:
        run: Directory of a stage that ended with a comparison.

    Returns:
        Its seed, and its rows by the names of decodings and references.

    Raises:
        FileNotFoundError: If it holds no comparison.
    """
    results, settings = run / "results.json", run / "config.yaml"
    if not results.is_file() or not settings.is_file():
        raise FileNotFoundError(f"{run} holds no comparison; give the directory of a finished stage with test: true")
    rows = json.loads(results.read_text(encoding="utf-8"))
    return OmegaConf.load(settings).get("seed"), {row["name"]: row for row in rows}


def tabulate(runs: Sequence[Path]) -> str:
    """Lay out the rows that all runs have in common.

    Args:
        runs: Directories of stages that compared the same talkers, one per seed.

    Returns:
        A Markdown table: the mean, and where there are several runs the sample standard deviation behind it.

    Raises:
        FileNotFoundError: If a run holds no comparison.
        UserError: If two runs have one seed, or compared different decodings.
    """
    read = [read_run(run) for run in runs]
    seeds = [seed for seed, _ in read]
    if len(set(seeds)) != len(seeds):
        raise UserError(f"the runs have the seeds {seeds}; give one run per seed, or the spread says nothing")
    first = read[0][1]
    for run, (_, rows) in zip(runs, read, strict=True):
        if rows.keys() != first.keys():
            odd = sorted(map(str, rows.keys() ^ first.keys()))
            raise UserError(f"{run} and {runs[0]} differ in what they compared: {', '.join(odd)}; give runs alike")
    titles = ["decoding", "talker", "steps", "rule", *(title for title, *_ in COLUMNS)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, own in first.items():
        cells = []
        for _, column, scale, digits in COLUMNS:
            values = [rows[name][column] for _, rows in read]
            cells.append(_cell([scale * value for value in values if value is not None], digits))
        if len(runs) == 1:
            cells[0] += " ({:.1f} to {:.1f})".format(*(100 * bound for bound in own["wer_interval"]))
        how = [own[key] or "-" for key in ("talker", "steps", "rule")]
        lines.append(f"| {' | '.join(map(str, [name, *how, *cells]))} |")
    counts = sorted({row["num_examples"] for _, rows in read for row in rows.values()})
    named = ", ".join(str(seed) for seed in sorted(seeds, key=str))
    dialogues = " or ".join(map(str, counts))
    what = "mean ± standard deviation over seeds" if len(runs) > 1 else "WER with its 95 % bootstrap interval, seed"
    return "\n".join([*lines, "", f"{what} {named}; {dialogues} test dialogues per run"])


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def read_seeds(text: str) -> list[int]:
    """Read `1,2,3`; raises ValueError, which argparse reports, if it is anything else."""
    return [int(seed) for seed in text.split(",")]


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    what = "experiments that are finished with these seeds, and the overrides that they were run with"
    parser.add_argument("words", nargs="+", metavar="FILE or key=value", help=what)
    parser.add_argument("--seeds", default=[1], type=read_seeds, help="seeds, separated by commas (1 if left out)")
    parser.add_argument("--key", default="seed", help="what the seeds were given as: seed or talker_seed")
    try:
        parsed = parser.parse_intermixed_args(arguments)
        names = [word for word in parsed.words if "=" not in word]
        overrides = [word for word in parsed.words if "=" in word]
        print(write_page(names, overrides, parsed.seeds, parsed.key))
    except Exception as error:
        return report_mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

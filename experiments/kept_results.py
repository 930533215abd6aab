"""The command line that keeps what finished comparisons showed, as small files, and makes tables from these.

A file holds what a run leaves that is worth keeping: the resolved configuration of all its stages, commit and machine,
and the word errors of every reply. Files of several seeds, made at any time and anywhere, add up to one table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from callbacks.comparison.page.run_files import read_optional  # noqa: E402
from datamodules.formats.atomic_files import write_text  # noqa: E402
from experiments.engine.configuration.errors import report_mistake  # noqa: E402
from experiments.jobs.budgets.choices import CHOICE  # noqa: E402
from experiments.transcripts import read_records  # noqa: E402
from lightning_modules.errors import UserError  # noqa: E402
from lightning_modules.evaluation.over_seeds import (  # noqa: E402
    SeedErrors,
    difference_over_seeds,
    estimate_over_seeds,
    smallest_shown,
)
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME  # noqa: E402
from lightning_modules.evaluation.word_error_rate import count_word_errors  # noqa: E402

FORMAT_VERSION = 1
RESULTS = Path(__file__).resolve().parent / "results"
# Of a machine and of the code, what a reader of a table may want to know.
KEPT_OF_ENVIRONMENT = ("commit", "is_dirty", "sources", "command", "python", "platform", "num_cpus", "gpus")
# Of a row, what is not made from the errors of replies.
KEPT_OF_ROW = ("talker", "steps", "rule", "forwards_per_block", "tokens_per_s", "length_ratio", "failures")
_RUN_NAME = re.compile(r"-[0-9a-f]{8}\b")


@dataclass(frozen=True)
class KeptResults:
    """One comparison, as a file has it.

    Attributes:
        path: The file.
        content: What is in it; see :func:`keep`.
    """

    path: Path
    content: dict[str, Any]

    @property
    def decodings(self) -> dict[str, dict[str, Any]]:
        """What each decoding or reference came to."""
        return dict(self.content["decodings"])

    def errors_of(self, name: str, against: str) -> SeedErrors:
        """Give the errors of a decoding against the thinker's own text or the gold reply."""
        own = self.content["decodings"][name][against]
        return SeedErrors(tuple(self.content["dialogues"]), np.array(own["errors"]), np.array(own["words"]))


def keep(run: Path, into: Path = RESULTS) -> Path:
    """Write what a comparison showed as one small file.

    Args:
        run: The directory of a stage that ended with a comparison.
        into: Folder of the file, which is named after experiment, stage, seed and fingerprint.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no finished comparison.
        UserError: If decodings of it answered other dialogues.
    """
    missing = [name for name in ("transcripts.json", "results.json", "finished.json") if not (run / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{run} has no {missing[0]}; give the directory of a finished stage with test: true")
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text(encoding="utf-8"))}
    records = read_records(run)
    stages = dict(_stages(run))
    config = stages[run.name]
    first = next(iter(records))
    dialogues = [record["id"] for record in records[first]]
    decodings = {}
    for name, row in rows.items():
        own = {record["id"]: record for record in records.get(name, ())}
        if set(own) != set(dialogues):
            raise UserError(f"{run}: {name} and {first} answered other dialogues; run it again")
        counts = {}
        for against in ("text", "gold"):
            errors, words = count_word_errors([(own[one][against], own[one]["heard"]) for one in dialogues])
            counts[against] = {"errors": errors.tolist(), "words": words.tolist()}
        decodings[name] = {**{key: row.get(key) for key in KEPT_OF_ROW}, **counts}
    environment = read_optional(run / "environment.json")
    content = {
        "format_version": FORMAT_VERSION,
        "experiment": run.parent.name,
        "stage": config.get("name") or run.name.rsplit("-", 1)[0],
        "seed": config.get("seed"),
        "variant": _digest_without_seeds(stages),
        "environment": {key: environment.get(key) for key in KEPT_OF_ENVIRONMENT},
        "commits": {name: read_optional(run.parent / name / "environment.json").get("commit") for name in stages},
        # Which learning rate and stopping point each talker was given, if a stage chose them.
        "choices": {name: found for name in stages if (found := read_optional(run.parent / name / CHOICE))},
        "normalizer": NORMALIZER_NAME,
        "dialogues": dialogues,
        "decodings": decodings,
        "config": stages,
    }
    file = into / f"{run.parent.name}-{content['stage']}-seed{content['seed']}-{run.name.rsplit('-', 1)[-1]}.json"
    into.mkdir(parents=True, exist_ok=True)
    write_text(file, _dump(content))
    return file


def _stages(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the configuration of a run and of all that it was made from, by the names of run directories."""
    seen: set[str] = set()
    waiting = [run]
    while waiting:
        one = waiting.pop()
        file = one / "config.yaml"
        if one.name in seen or not file.is_file():
            continue
        seen.add(one.name)
        config = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(config, dict)
        yield one.name, config
        waiting += [one.parent / Path(path).name for path in (config.get("inputs") or {}).values()]


def _digest_without_seeds(stages: dict[str, Any]) -> str:
    """Digest what was run but for seed, places and threads: equal for runs that differ in nothing else."""
    left_out = ("seed", "seed_group", "fingerprint", "runs_dir", "threads")

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            kept = {key: plain(value) for key, value in node.items() if key not in left_out}
            return {_RUN_NAME.sub("", key): value for key, value in kept.items()}
        if isinstance(node, list):
            return [plain(value) for value in node]
        return Path(_RUN_NAME.sub("", node)).name if isinstance(node, str) else node

    return hashlib.sha256(json.dumps(plain(stages), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _dump(content: dict[str, Any]) -> str:
    """Write JSON with each list of numbers in one line, so that changes of a file can be read."""
    text = json.dumps(content, ensure_ascii=False, indent=1)
    return re.sub(r"\[\s+([\d\s,]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", "", found[1]) + "]", text) + "\n"


def read(file: Path) -> KeptResults:
    """Read a file back.

    Raises:
        FileNotFoundError: If it is not there.
        UserError: If it is none of these files, or of another format.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; keep a run first: python experiments/kept_results.py keep RUN")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no kept results ({error}); give files that `keep` has written") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{file} has format {version}, this code reads {FORMAT_VERSION}; keep the run again")
    return KeptResults(file, content)


def tabulate(kept: Sequence[KeptResults], baseline: str | None = None, against: str = "text") -> str:
    """Lay out several seeds of one experiment, with intervals over seeds and dialogues.

    Args:
        kept: One file per seed.
        baseline: Decoding that all are compared with; none if None.
        against: "text", the thinker's own, or "gold".

    Returns:
        A Markdown table, and below it what it is made from.

    Raises:
        UserError: If there is no file, two have one seed, they are of other variants, or one lacks the baseline.
    """
    if not kept:
        raise UserError("there is no file to make a table from; give at least one")
    seeds = [one.content["seed"] for one in kept]
    if len(set(seeds)) != len(seeds):
        raise UserError(f"the files have the seeds {seeds}; give one file per seed")
    for one in kept[1:]:
        if one.content["variant"] != kept[0].content["variant"] or one.decodings.keys() != kept[0].decodings.keys():
            raise UserError(f"{one.path} and {kept[0].path} differ in more than the seed; make a table of each")
    first = kept[0].decodings
    if baseline is not None and baseline not in first:
        raise UserError(f"there is no decoding {baseline!r}; choose among {', '.join(first)}")
    titles = ["decoding", "steps", "rule", "WER % (95 %)", "by seed", "passes per block"]
    titles += [] if baseline is None else [f"minus {baseline}, points (95 %)"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in first.items():
        own = [one.errors_of(name, against) for one in kept]
        by_seed = ", ".join(f"{100 * one.errors.sum() / max(1, one.words.sum()):.1f}" for one in own)
        passes = [one.decodings[name]["forwards_per_block"] for one in kept]
        mean = "-" if None in passes else f"{sum(passes) / len(passes):.1f}"
        cells = [name, row["steps"] or "-", row["rule"] or "-", estimate_over_seeds(own).in_percent(), by_seed, mean]
        if baseline is not None:
            cells.append(_compare([one.errors_of(baseline, against) for one in kept], own, name == baseline))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", _describe(kept, against)])


def _compare(baseline: Sequence[SeedErrors], own: Sequence[SeedErrors], is_baseline: bool) -> str:
    if is_baseline:
        return "-"
    difference = difference_over_seeds(baseline, own)
    text = difference.in_percent(sign=True)
    return f"{text}: none shown, {100 * smallest_shown(difference):.1f} would be" if difference.includes_zero else text


def _describe(kept: Sequence[KeptResults], against: str) -> str:
    """Say what a table is made from."""
    dialogues = {tuple(one.content["dialogues"]) for one in kept}
    numbers = " or ".join(sorted({str(len(one)) for one in dialogues}))
    seeds = ", ".join(str(one.content["seed"]) for one in kept)
    code = ", ".join(sorted({_code(one.content["environment"]) for one in kept}))
    machines = "; ".join(sorted({_machine(one.content["environment"]) for one in kept}))
    reference = "the thinker's own text" if against == "text" else "the gold reply"
    shared = "the same for all" if len(dialogues) == 1 else "of each its own"
    over = f"seeds {seeds} and" if len(kept) > 1 else f"seed {seeds}, over"
    return (
        f"WER against {reference}, by {kept[0].content['normalizer']}; intervals over {over} {numbers} test dialogues"
        + (f", {shared}" if len(kept) > 1 else "")
        + "; a difference that is none shown would be shown in 4 of 5 repetitions if it were as large as told. "
        f"{_describe_seeds(kept)}Code: {code}; {machines}; variant {kept[0].content['variant']}; from "
        + ", ".join(one.path.name for one in kept)
    )


def _code(environment: Mapping[str, Any]) -> str:
    """Name the code of a run: its commit, or the digest of its sources where there was no repository."""
    commit = environment["commit"]
    return f"commit {commit[:8]}" if commit else f"sources {str(environment.get('sources'))[:8]}"


def _describe_seeds(kept: Sequence[KeptResults]) -> str:
    """Say which stages all seeds share, and which are made again for each; nothing of one seed."""
    if len(kept) == 1:
        return ""
    runs: dict[str, set[str]] = {}
    for one in kept:
        for run in one.content["config"]:
            runs.setdefault(_RUN_NAME.sub("", run), set()).add(run)
    runs.pop(kept[0].content["stage"], None)
    shared = ", ".join(name for name, own in runs.items() if len(own) == 1)
    varied = ", ".join(name for name, own in runs.items() if len(own) > 1)
    first = f"One run for all seeds: {shared}; made again for each: {varied}" if shared else "Each seed makes all again"
    too_small = 100 * (1 - ((len(kept) - 1) / len(kept)) ** 0.5)
    return f"{first}. The spread between {len(kept)} seeds is drawn {too_small:.0f} % too small. "


def _machine(environment: dict[str, Any]) -> str:
    gpus = ", ".join(environment.get("gpus") or ()) or "no GPU"
    return f"{environment.get('num_cpus')} cores, {gpus}, {environment.get('platform')}"


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="kept_results.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="keep finished comparisons")
    keeping.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a comparison")
    keeping.add_argument("--into", type=Path, default=RESULTS, help="folder of the files")
    tables = commands.add_parser("table", help="make a table from files, one per seed")
    tables.add_argument("files", nargs="+", metavar="FILE", type=Path)
    tables.add_argument("--baseline", help="decoding that all are compared with")
    tables.add_argument("--against", choices=("text", "gold"), default="text", help="thinker's own text or gold reply")
    try:
        parsed = parser.parse_args(arguments)
        if parsed.command == "keep":
            for run in parsed.runs:
                print(f"kept {keep(run, parsed.into)}")
        else:
            print(tabulate([read(file) for file in parsed.files], parsed.baseline, parsed.against))
    except Exception as error:
        return report_mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

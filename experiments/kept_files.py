"""Small files of what finished comparisons showed.

A file holds what a run leaves that is worth keeping: the resolved configuration of all its stages, commit and machine,
and the word errors of every reply. Files of several seeds, made at any time and anywhere, add up to one table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from callbacks.comparison.page.run_files import read_optional
from datamodules.formats.atomic_files import write_text
from experiments.jobs.budgets.choices import CHOICE
from experiments.transcripts import read_records
from lightning_modules.errors import UserError
from lightning_modules.evaluation.over_seeds import SeedErrors
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME
from lightning_modules.evaluation.word_error_rate import count_word_errors

FORMAT_VERSION = 1
RESULTS = Path(__file__).resolve().parent / "results"
# Of a machine and of the code, what a reader of a table may want to know.
KEPT_OF_ENVIRONMENT = ("commit", "is_dirty", "sources", "command", "python", "platform", "num_cpus", "gpus")
# Of a row, what is not made from the errors of replies.
KEPT_OF_ROW = ("talker", "steps", "rule", "forwards_per_block", "tokens_per_s", "length_ratio", "failures")
RUN_NAME = re.compile(r"-[0-9a-f]{8}\b")


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


def without_seeds(stages: dict[str, Any]) -> dict[str, Any]:
    """Give what was run but for seed, places and threads: equal for runs that differ in nothing else.

    Args:
        stages: Configurations by run, as a kept file's ``config`` has them.

    Returns:
        Configurations by stage.
    """
    left_out = ("seed", "seed_group", "fingerprint", "runs_dir", "threads")

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            kept = {key: plain(value) for key, value in node.items() if key not in left_out}
            return {RUN_NAME.sub("", key): value for key, value in kept.items()}
        if isinstance(node, list):
            return [plain(value) for value in node]
        return Path(RUN_NAME.sub("", node)).name if isinstance(node, str) else node

    return plain(stages)


def _digest_without_seeds(stages: dict[str, Any]) -> str:
    plain = without_seeds(stages)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


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

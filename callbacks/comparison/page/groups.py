"""Runs as columns: those that differ in nothing but their seed belong to one experiment."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.comparison.page.run_files import ComparedRun, Json, locate, read_records
from lightning_modules.errors import UserError

# What has no influence on results, or differs between runs of one experiment.
IGNORED = ("name", "description", "runs_dir", "threads", "checkpoint", "fingerprint", "inputs", "seed", "seed_group")


@dataclass(frozen=True)
class Experiment:
    """Runs with one configuration and several seeds.

    Attributes:
        label: Its name on the page.
        runs: One per seed.
    """

    label: str
    runs: tuple[ComparedRun, ...]

    @property
    def seeds(self) -> str:
        """The seeds, for people."""
        return ", ".join("not recorded" if run.seed is None else str(run.seed) for run in self.runs)


def label_of(experiments: Sequence[Experiment], experiment: Experiment, name: str) -> str:
    """Name a row or a talker of an experiment; by itself if there is but one experiment."""
    return name if len(experiments) == 1 else f"{name}, {experiment.label}"


def group_runs(runs: Sequence[ComparedRun]) -> list[Experiment]:
    """Put runs that differ in their seeds alone into one experiment.

    Two runs are of one experiment if their configurations, and those of all runs that they were made from, are equal
    but for seeds and places.

    Args:
        runs: At least one.

    Returns:
        The experiments, in the order of their first runs.

    Raises:
        UserError: If there is no run, or one experiment has two runs of one seed.
    """
    if not runs:
        raise UserError("there is no run to compare; give runs=[A, B] with the directories of finished comparisons")
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        recipe = _recipe(run.folder, {}) if run.config else str(run.folder.resolve())
        groups.setdefault(recipe, []).append(run)
    for group in groups.values():
        seed, count = Counter(run.seed for run in group).most_common(1)[0]
        if count > 1:
            same = " and ".join(str(run.folder) for run in group if run.seed == seed)
            raise UserError(f"{same} are the same experiment with the seed {seed}; give one run per seed")
    names = [group[0].folder.resolve().parent.name for group in groups.values()]
    labels = [
        name if names.count(name) == 1 else f"{name}/{group[0].folder.name}"
        for name, group in zip(names, groups.values(), strict=True)
    ]
    return [Experiment(label, tuple(group)) for label, group in zip(labels, groups.values(), strict=True)]


def _recipe(folder: Path, known: dict[Path, str]) -> str:
    """Digest the configuration of a run and of its inputs, but for seeds and places."""
    if folder not in known:
        known[folder] = folder.name  # records that name each other in a circle end here
        config, _ = read_records(folder)
        inputs: Json = config.get("inputs") or {}
        made_from = {}
        for name, path in inputs.items():
            place = locate(str(path), folder)
            made_from[name] = _recipe(place, known) if (place / "config.yaml").is_file() else str(path)
        own = {key: value for key, value in config.items() if key not in IGNORED}
        places = {str(path): f"<{name}>" for name, path in inputs.items()}
        known[folder] = hashlib.sha256(
            json.dumps([_without(own, places), made_from], sort_keys=True, default=str).encode()
        ).hexdigest()
    return known[folder]


def _without(node: Any, places: dict[str, str]) -> Any:
    """Leave out seeds, and name inputs in place of where they are."""
    if isinstance(node, dict):
        return {key: _without(value, places) for key, value in node.items() if key != "seed"}
    if isinstance(node, list):
        return [_without(value, places) for value in node]
    if isinstance(node, str):
        for place, name in places.items():
            node = re.sub(rf"^{re.escape(place)}(?=/|$)", name, node)
    return node

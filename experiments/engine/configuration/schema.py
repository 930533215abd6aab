"""The keys of an experiment file, their types and their ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.engine.configuration.checks import IS_VALID, VALID, check_dataclass, check_finite, check_value
from experiments.engine.configuration.errors import join
from lightning_modules.number_checks import MAX_SEED

PIPELINE_KEYS = (
    *("base", "description", "name", "seed", "seeds", "threads"),
    *("runs_dir", "inputs", "checkpoint", "stages", "aliases"),
)
PIPELINE_ONLY_KEYS = ("name", "runs_dir", "stages", "seeds")
INHERITED_BY_STAGES = ("seed", "threads", "checkpoint")


def limited(default: Any, is_valid: Callable[[Any], bool], valid: str) -> Any:
    """Declare a field that takes only some values of its type, described by `valid`."""
    return field(default=default, metadata={IS_VALID: is_valid, VALID: valid})


@dataclass
class CheckpointPolicy:
    """How often `checkpoints/last.ckpt` is written during a fit (it is also written at its end and on interrupt)."""

    every_n_steps: int | None = limited(None, lambda steps: steps > 0, "a positive number, or null for never")
    every_s: float | None = limited(60.0, lambda seconds: seconds > 0, "a positive number, or null for never")


@dataclass
class Alias:
    """A short name of a key on the command line, where `name=value` stands for `key=value`.

    Args:
        key: What it stands for.
        help: What its value is, for `--help`.
        is_text: Whether the value is taken as it is written, and not as YAML.
    """

    key: str = ""
    help: str = ""
    is_text: bool = False


@dataclass
class Experiment:
    """The keys of an experiment; any other key is an error.

    An experiment is one of three: a `job`, a `module` with its `datamodule`, or a pipeline of `stages`. The
    `seeds` of a pipeline take the place of its `seed` for the stages whose `seed_group` they name; null takes none.
    """

    base: list[str] | str | None = None
    description: str = ""
    name: str | None = None
    seed: int = limited(0, lambda seed: 0 <= seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
    seed_group: str | None = None
    seeds: dict[str, int | None] = field(default_factory=dict)
    threads: int | None = limited(None, lambda threads: threads > 0, "a positive number, or null for all cores")
    runs_dir: str = "runs"
    inputs: dict[str, str | None] = field(default_factory=dict)
    job: dict[str, Any] | None = None
    module: dict[str, Any] | None = None
    datamodule: dict[str, Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    fit: bool = True
    test: bool = False
    stages: dict[str, Any] | None = None
    aliases: dict[str, Any] = field(default_factory=dict)


EXPERIMENT_KEYS = tuple(one.name for one in dataclasses.fields(Experiment))


def check_keys(content: dict[str, Any], path: str) -> None:
    """Check that every key is one of `Experiment` and that its value has the right plain type and is in range.

    Raises:
        ConfigError: An unknown key, a wrong type, or a number out of range.
    """
    check_dataclass(Experiment, content, path)
    check_dataclass(CheckpointPolicy, content.get("checkpoint") or {}, join(path, "checkpoint"))
    for name, alias in (content.get("aliases") or {}).items():
        where = join(join(path, "aliases"), name)
        check_value(alias, dict, where)
        check_dataclass(Alias, alias, where)
    check_finite(content, path)


def without_empty(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys that are not used, for people to read."""
    return {key: value for key, value in config.items() if value not in (None, {}, "")}

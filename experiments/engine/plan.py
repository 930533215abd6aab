"""Planning of an experiment: which stages it has, how each is configured, and which run directory each gets.

This module imports no torch, so that mistakes in an experiment file are told at once. Only what looks at classes and
their arguments, `codebooks` and `dry_build`, imports them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.engine.configuration import config as configs
from experiments.engine.configuration.checks import MISSING
from experiments.engine.configuration.config import Pipeline, Stage
from experiments.engine.configuration.errors import ConfigError, did_you_mean, join
from experiments.engine.configuration.schema import check_keys, without_empty
from experiments.engine.runs import Run, fingerprint_of, fingerprint_of_path, latest_run
from lightning_modules.errors import UserError

WITHOUT_INFLUENCE = ("description", "name", "runs_dir", "threads", "checkpoint", "seed_group")
# Where a training runs, which may change when it is resumed; the number of examples per step may change with it.
PLACE_OF_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar")
INPUT_OF_STAGE = "stage:"
LATEST_RUN = "latest:"  # of a pipeline in the same runs_dir: latest:quickstart/comparison


@dataclass
class PlannedStage:
    """A stage with its resolved configuration and its run directory.

    Attributes:
        stage: The stage as composed.
        config: Its resolved configuration.
        run: Its run directory.
        world_size: Number of processes that train it together.
        max_steps: Where its training ends, in steps; infinite if only epochs or a time are given.
        unchecked: YAML paths of parts that could not be built before their turn, for example since they read what an
            earlier stage writes.
    """

    stage: Stage
    config: dict[str, Any]
    run: Run
    world_size: int = 1
    max_steps: float = math.inf
    unchecked: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One of `reuse`, `resume`, `to do`."""
        return "reuse" if self.run.is_finished else "resume" if self.run.is_begun else "to do"


@dataclass
class Plan:
    """All stages of an experiment, resolved and checked."""

    pipeline: Pipeline
    stages: list[PlannedStage] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """The directory that holds the run directories."""
        return self.pipeline.runs_dir / self.pipeline.name

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        if self.pipeline.is_single:
            return OmegaConf.to_yaml(OmegaConf.create(without_empty(self.stages[0].config)))
        head = {"name": self.pipeline.name, "description": self.pipeline.description}
        stages = {planned.stage.name: without_empty(planned.config) for planned in self.stages}
        return OmegaConf.to_yaml(OmegaConf.create({**head, "stages": stages}))


def make_plan(file: Path, overrides: list[str], check: bool = True, redo: bool = False) -> Plan:
    """Compose, resolve and check an experiment without running anything.

    Args:
        file: The experiment file.
        overrides: `key=value` texts.
        check: Whether to import the classes, check every argument, and build without weights each stage that is to run.
        redo: Whether finished stages are to run, too.

    Returns:
        The stages in order, each with its run directory.

    Raises:
        ConfigError: Any mistake in any stage.
    """
    plan = Plan(configs.compose(file, overrides))
    for stage in plan.pipeline.stages:
        fingerprints, paths = _resolve_inputs(stage, plan)
        resolved, hashed = resolve(stage, paths), resolve(stage, fingerprints)
        if resolved["module"] is not None:
            from experiments.engine.codebooks import with_codebook_size  # imports torch

            # before the fingerprint: a run is the same whether the size is given or left out
            planned = {one.run.directory: one.config for one in plan.stages}
            try:
                resolved, hashed = with_codebook_size((resolved, hashed), planned, stage.path)
            except UserError:
                _check(plan, check, redo)  # a mistake of an earlier stage is told as such
                raise
        fingerprint = fingerprint_of(_with_influence(hashed))
        resolved.update(name=stage.name, runs_dir=str(plan.pipeline.runs_dir))
        run = Run(plan.directory / f"{stage.name}-{fingerprint[:8]}", fingerprint)
        plan.stages.append(PlannedStage(stage, resolved, run))
    _check(plan, check, redo)
    return plan


def _check(plan: Plan, check: bool, redo: bool) -> None:
    if check:
        from experiments.engine.dry_build import check_stages  # imports torch

        check_stages(plan.stages, redo)


def _with_influence(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's results come from; the rest may change when it is resumed."""
    kept = {key: value for key, value in config.items() if key not in WITHOUT_INFLUENCE}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in PLACE_OF_TRAINER}
    return kept


def _resolve_inputs(stage: Stage, plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fingerprint and the path of every input."""
    fingerprints, paths = {}, {}
    earlier = {planned.stage.name: planned.run for planned in plan.stages}
    for name, value in stage.config["inputs"].items():
        path = join(join(stage.path, "inputs"), name)
        if value is None and f"${{inputs.{name}}}" not in repr(stage.config):
            continue  # removed, and nothing asks for it
        if value is None or value == MISSING:
            raise ConfigError(path, f"this input is not given; say where it is, e.g. {path}=PATH")
        if value.startswith(INPUT_OF_STAGE):
            source = value.removeprefix(INPUT_OF_STAGE)
            if source not in earlier:
                raise ConfigError(path, f"there is no earlier stage {source}; {did_you_mean(source, earlier)}")
            fingerprints[name] = earlier[source].fingerprint
            paths[name] = str(earlier[source].directory)
            continue
        if value.startswith(LATEST_RUN):
            value = str(_latest(value.removeprefix(LATEST_RUN), plan.pipeline.runs_dir, path))
        if not Path(value).expanduser().exists():
            raise ConfigError(path, f"there is no file or directory {value}; give an existing one with {path}=PATH")
        paths[name] = str(Path(value).expanduser())
        fingerprints[name] = fingerprint_of_path(Path(paths[name]))
    return fingerprints, paths


def _latest(source: str, runs_dir: Path, path: str) -> Path:
    """Return the run that `latest:<pipeline>/<stage>` stands for."""
    pipeline, slash, stage = source.rpartition("/")
    if not slash:
        raise ConfigError(path, f"expected {LATEST_RUN}PIPELINE/STAGE, got {LATEST_RUN}{source}")
    run = latest_run(runs_dir / pipeline, stage)
    if run is None:
        problem, maker = f"there is no finished run of {stage} in {runs_dir / pipeline}", _maker_of(stage, pipeline)
        raise ConfigError(path, f"{problem}; make one by python experiments/run.py {maker}, or give {path}=RUN")
    return run


def _maker_of(stage: str, pipeline: str) -> str:
    """Give the shipped experiment that makes a stage among the runs of a pipeline; the pipeline itself by default."""
    contents = {file.stem: configs.read_file(file) for file in configs.shipped_files()}
    makers = [
        name
        for name, content in contents.items()
        if content.get("name", name) == pipeline and (content.get("stages") or {}).get(stage) is not None
    ]
    return pipeline if not makers or pipeline in makers else makers[0]


def resolve(stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
    """Return the configuration of a stage with its inputs in place and every `${...}` replaced.

    Raises:
        ConfigError: An interpolation names nothing, or what it gives has the wrong type.
    """
    resolved = configs.interpolate({**stage.config, "inputs": inputs}, stage.path)
    check_keys(resolved, stage.path)
    return resolved

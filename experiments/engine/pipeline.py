"""Planning and running of the stages of an experiment."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.engine import config as configs
from experiments.engine.checks import MISSING
from experiments.engine.config import Pipeline, Stage
from experiments.engine.errors import ConfigError, did_you_mean, is_users_mistake, join, text_of
from experiments.engine.runs import Run, exclusive, fingerprint_of, fingerprint_of_path, read_json, write_atomically
from experiments.engine.stage import StageResult, check_stage, run_stage, without_empty

WITHOUT_INFLUENCE = ("description", "name", "runs_dir", "threads", "checkpoint")
INPUT_OF_STAGE = "stage:"


@dataclass
class PlannedStage:
    """A stage with its resolved configuration and its run directory."""

    stage: Stage
    config: dict[str, Any]
    run: Run

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


def make_plan(file: Path, overrides: list[str], check: bool = True) -> Plan:
    """Compose, resolve and check an experiment without building or running anything.

    Args:
        file: The experiment file.
        overrides: `key=value` texts.
        check: Whether to import the classes and check every argument.

    Returns:
        The stages in order, each with its run directory.

    Raises:
        ConfigError: Any mistake in any stage.
    """
    plan = Plan(configs.compose(file, overrides))
    for stage in plan.pipeline.stages:
        fingerprints, paths = _resolve_inputs(stage, plan)
        hashed = resolve(stage, fingerprints)
        fingerprint = fingerprint_of({key: hashed[key] for key in hashed if key not in WITHOUT_INFLUENCE})
        resolved = resolve(stage, paths)
        if check:
            check_stage(resolved, stage.path)
        resolved.update(name=stage.name, runs_dir=str(plan.pipeline.runs_dir))
        run = Run(plan.directory / f"{stage.name}-{fingerprint[:8]}", fingerprint)
        plan.stages.append(PlannedStage(stage, resolved, run))
    return plan


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
        elif not Path(value).expanduser().exists():
            raise ConfigError(path, f"there is no file or directory {value}; give an existing one with {path}=PATH")
        else:
            paths[name] = str(Path(value).expanduser())
            fingerprints[name] = fingerprint_of_path(Path(paths[name]))
    return fingerprints, paths


def resolve(stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
    """Return the configuration of a stage with its inputs in place and every `${...}` replaced.

    Raises:
        ConfigError: An interpolation names nothing, or what it gives has the wrong type.
    """
    resolved = configs.interpolate({**stage.config, "inputs": inputs}, stage.path)
    configs.check_keys(resolved, stage.path)
    return resolved


def execute(plan: Plan, force: bool = False, resume: bool = False, keep_objects: bool = False) -> list[StageResult]:
    """Run the stages in order; skip the finished ones, go on with a begun one.

    Args:
        plan: What `make_plan` returned.
        force: Delete the run directories of this plan and do all stages anew.
        resume: Insist that there is something to go on from.
        keep_objects: Whether the results hold modules and trainers, which costs the memory of all stages at once.

    Returns:
        One result a stage.

    Raises:
        ConfigError: A mistake of the user, or nothing to resume.
    """
    states = [planned.state for planned in plan.stages]
    if resume and (all(state == "to do" for state in states) or all(state == "reuse" for state in states)):
        why = "it is finished already" if states[0] == "reuse" else "it was never begun with this configuration"
        raise ConfigError("", f"nothing to resume in {plan.directory}: {why}; run without --resume")
    _print_plan(plan, force)
    results = []
    for number, planned in enumerate(plan.stages, start=1):
        label = f"[{number}/{len(plan.stages)}] {planned.stage.name}"
        with exclusive(planned.run.directory):
            results.append(_run_or_reuse(planned, label, force))
        if not keep_objects:
            results[-1].objects.clear()
            gc.collect()
        _write_latest(plan)
    return results


def _run_or_reuse(planned: PlannedStage, label: str, force: bool) -> StageResult:
    run = planned.run
    if run.is_finished and not force:
        finished = read_json(run.finished_file)
        print(f"{label}: reused {run.directory}", flush=True)
        _print_summary(run)
        return StageResult(planned.stage.name, run, finished["metrics"], finished["seconds"], is_reused=True)
    if force:
        for entry in run.directory.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    print(f"{label}: {'goes on in' if run.is_begun else 'runs in'} {run.directory}", flush=True)
    start = time.monotonic()
    try:
        result = run_stage(planned.stage.name, planned.config, run, planned.stage.path)
    except ConfigError:
        raise
    except Exception as error:
        if is_users_mistake(error):
            raise ConfigError(planned.stage.path or planned.stage.name, text_of(error)) from error
        raise
    print(f"{label}: done in {_duration(time.monotonic() - start)}", flush=True)
    _print_summary(run)
    return result


def _print_plan(plan: Plan, force: bool) -> None:
    print(f"{plan.pipeline.name}: {plan.pipeline.description}" if plan.pipeline.description else plan.pipeline.name)
    width = max(len(planned.stage.name) for planned in plan.stages)
    for planned in plan.stages:
        state = "redo" if force and planned.state != "to do" else planned.state
        print(f"  {planned.stage.name:<{width}}  {state:<6}  {planned.run.directory}", flush=True)


def _print_summary(run: Run) -> None:
    """Print what a stage left as its `summary.txt`, also when it is reused."""
    summary = run.directory / "summary.txt"
    if summary.is_file():
        print(summary.read_text(encoding="utf-8").rstrip("\n"), flush=True)


def _write_latest(plan: Plan) -> None:
    """Say which run directory belongs to each stage now (a link would show every curve twice in TensorBoard)."""
    finished = [planned for planned in plan.stages if planned.run.is_finished]
    lines = [f"{planned.stage.name}: {planned.run.directory.name}" for planned in finished]
    write_atomically(plan.directory / "latest.txt", "\n".join(lines) + "\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"

"""Running of the stages of a plan, in order: finished ones are reused, begun ones resumed."""

from __future__ import annotations

import gc
import shutil
import time

from omegaconf import OmegaConf

from experiments.engine import ranks
from experiments.engine.configuration.errors import ConfigError, is_users_mistake, text_of
from experiments.engine.environment import describe_other_code
from experiments.engine.plan import Plan, PlannedStage
from experiments.engine.runs import Run, exclusive, read_json, write_latest
from experiments.engine.stage import StageResult, run_stage


def execute(plan: Plan, force: bool = False, resume: bool = False, keep_objects: bool = False) -> list[StageResult]:
    """Run the stages in order; reuse the finished ones, resume a begun one.

    Args:
        plan: What `make_plan` returned.
        force: Delete the run directories of this plan and run all stages again.
        resume: Insist that there is something to resume.
        keep_objects: Whether the results hold modules and trainers, which costs the memory of all stages at once.

    Returns:
        One result per stage.

    Raises:
        ConfigError: A mistake of the user, or nothing to resume.
    """
    own_stage = ranks.own_stage()
    if own_stage is not None:
        return [_take_part(next(planned for planned in plan.stages if planned.stage.name == own_stage))]
    if force and ranks.are_launched_together():
        raise ConfigError(
            "", "--force is for one process: run it once without the launcher, or delete the runs by hand"
        )
    states = [planned.state for planned in plan.stages]
    if resume and (all(state == "to do" for state in states) or all(state == "reuse" for state in states)):
        why = "it is finished already" if states[0] == "reuse" else "it was never begun with this configuration"
        raise ConfigError("", f"nothing to resume in {plan.directory}: {why}; run without --resume")
    is_first = ranks.is_first()
    if is_first:
        _print_plan(plan, force)
    results = []
    for number, planned in enumerate(plan.stages, start=1):
        label = f"[{number}/{len(plan.stages)}] {planned.stage.name}"
        if is_first:
            with exclusive(planned.run.directory):
                results.append(_run_or_reuse(planned, label, force))
            finished = [planned for planned in plan.stages if planned.run.is_finished]
            write_latest(plan.directory, {planned.stage.name: planned.run.directory.name for planned in finished})
        else:
            results.append(_follow(planned))
        if not keep_objects and not results[-1].is_reused:
            results[-1].objects.clear()
            gc.collect()
    return results


def _take_part(planned: PlannedStage) -> StageResult:
    """Train one stage with the process that started this one."""
    ranks.end_with_parent()
    return run_stage(planned.stage.name, planned.config, planned.run, planned.stage.path)


def _follow(planned: PlannedStage) -> StageResult:
    """Take part in a stage that several devices train, and wait for the first process in any other."""
    run = planned.run
    if planned.world_size > 1 and not run.is_finished:
        run_stage(planned.stage.name, planned.config, run, planned.stage.path)
    ranks.wait_for(run)
    return _reused(planned)


def _reused(planned: PlannedStage) -> StageResult:
    finished = read_json(planned.run.finished_file)
    return StageResult(planned.stage.name, planned.run, finished["metrics"], finished["seconds"], is_reused=True)


def _run_or_reuse(planned: PlannedStage, label: str, force: bool) -> StageResult:
    run = planned.run
    if run.is_finished and not force:
        print(f"{label}: reused {run.directory}", flush=True)
        _print_other_code(run, label, "made")
        _print_other_place(planned, label)
        _print_summary(run)
        return _reused(planned)
    if force:
        for entry in run.directory.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    print(f"{label}: {'resumes in' if run.is_begun else 'runs in'} {run.directory}", flush=True)
    _print_other_code(run, label, "begun")
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


def _print_other_code(run: Run, label: str, what: str) -> None:
    """Say in one line if other code than the present one worked on a run."""
    other = describe_other_code(run)
    if other is not None:
        print(f"{label}: {what} by other code ({other})", flush=True)


def _print_other_place(planned: PlannedStage, label: str) -> None:
    """Say in one line if a finished run was trained on other devices than are asked for now."""
    made = OmegaConf.to_container(OmegaConf.load(planned.run.config_file))
    assert isinstance(made, dict)
    then, now = made.get("trainer") or {}, planned.config["trainer"]
    if then.get("devices", 1) != now.get("devices", 1):
        asked = f"not the {now.get('devices', 1)} asked for now; --force trains it again"
        print(f"{label}: made on {then.get('devices', 1)} device(s), {asked}", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"

"""Stages are checked before any runs, reused while unchanged, and resumed after any kind of stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.engine.artifacts import load_trained
from experiments.engine.configuration.errors import ConfigError
from experiments.engine.pipeline import execute
from experiments.engine.plan import Plan, make_plan
from experiments.engine.runs import exclusive, fingerprint_of, fingerprint_of_path, write_json
from experiments.engine.stage import StageResult
from tests.experiments.engine.toy import ToyModule

PIPELINE = """
description: Toy pipeline.
seed: 3
stages:
  corpus:
    job: {class_path: tests.experiments.engine.toy.ToyJob, init_args: {number: 4}}
  line:
    inputs: {corpus: "stage:corpus"}
    module: {class_path: tests.experiments.engine.toy.ToyModule}
    datamodule:
      class_path: tests.experiments.engine.toy.ToyData
      init_args: {root: "${inputs.corpus}", seed: "${seed}"}
    trainer: {max_steps: 3, accelerator: cpu, enable_progress_bar: false}
    test: true
  better:
    base: second.yaml
    inputs: {line: "stage:line"}
"""
SECOND = """
inputs:
  line: ???
module:
  class_path: tests.experiments.engine.toy.ToyModule
  init_args:
    part: {class_path: experiments.engine.artifacts.load_trained, init_args: {run: "${inputs.line}", attribute: net}}
datamodule: {class_path: tests.experiments.engine.toy.ToyData}
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "second.yaml").write_text(SECOND)
    (tmp_path / "toy.yaml").write_text(PIPELINE)
    return tmp_path / "toy.yaml"


def plan_of(file: Path, *overrides: str) -> Plan:
    return make_plan(file, [f"runs_dir={file.parent}/runs", *overrides])


def run(file: Path, *overrides: str, **flags: bool) -> list[StageResult]:
    return execute(plan_of(file, *overrides), keep_objects=True, **flags)


def states(plan: Plan) -> list[str]:
    return [planned.state for planned in plan.stages]


def test_finished_stages_are_reused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(file)
    assert [result.is_reused for result in first] == [False, False, False]
    assert {"train/loss", "test/loss"} <= first[1].metrics.keys()
    names = [logger.name for logger in first[1].objects["trainer"].loggers]
    assert names == ["red", "blue"]
    assert list(first[1].run.directory.glob("tensorboard/red/events*"))
    (first[1].run.directory / "summary.txt").write_text("a table\n")
    again = run(file)
    assert [result.is_reused for result in again] == [True, True, True]
    assert [result.metrics for result in again] == [result.metrics for result in first]
    printed = capsys.readouterr().out
    assert f"[2/3] line: reused {first[1].run.directory}\na table\n" in printed
    assert (file.parent / "runs/toy/latest.txt").read_text().splitlines()[0] == f"corpus: {first[0].run.directory.name}"


def test_a_change_redoes_what_depends_on_it_and_keeps_the_old(file: Path) -> None:
    first = run(file)
    assert states(plan_of(file, "stages.better.trainer.max_steps=1")) == ["reuse", "reuse", "to do"]
    assert states(plan_of(file, "stages.line.trainer.max_steps=2")) == ["reuse", "to do", "to do"]
    assert states(plan_of(file, "stages.corpus.job.init_args.number=5")) == ["to do", "to do", "to do"]
    assert states(plan_of(file, "seed=4")) == ["to do", "to do", "to do"]
    assert states(plan_of(file, "threads=1", "checkpoint.every_s=9", "description=x")) == ["reuse", "reuse", "reuse"]
    changed = run(file, "stages.line.trainer.max_steps=2")
    assert changed[1].run.directory != first[1].run.directory
    assert states(plan_of(file)) == ["reuse", "reuse", "reuse"]


def test_a_parent_that_resolves_equal_is_no_change(file: Path) -> None:
    before = [planned.run for planned in plan_of(file).stages]
    (file.parent / "second.yaml").write_text("# a remark\n" + SECOND.replace("max_steps: 2", 'max_steps: "${half.it}"'))
    with pytest.raises(ConfigError, match=r"^stages.better.trainer.max_steps: .*half.* name a key of this experiment$"):
        plan_of(file)
    (file.parent / "second.yaml").write_text("# a remark\n" + SECOND)
    assert [planned.run for planned in plan_of(file).stages] == before


def test_force_redoes_and_resume_insists(file: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume in .*: it was never begun"):
        run(file, resume=True)
    (corpus, *_) = run(file)
    with pytest.raises(ConfigError, match="nothing to resume in .*: it is finished already"):
        run(file, resume=True)
    count = corpus.run.directory / "count.txt"
    assert count.read_text() == "1"
    run(file, force=True)
    assert count.read_text() == "1"
    corpus.run.finished_file.unlink()
    assert states(plan_of(file)) == ["resume", "reuse", "reuse"]
    results = run(file, resume=True)
    assert count.read_text() == "2"
    assert [result.is_reused for result in results] == [False, True, True]


def test_only_the_test_is_redone_after_the_fit(file: Path) -> None:
    line = run(file)[1]
    line.run.finished_file.unlink()
    again = run(file)[1]
    assert again.objects["trainer"].global_step == 0
    assert again.metrics == pytest.approx(line.metrics)
    for name, weight in line.objects["module"].state_dict().items():
        torch.testing.assert_close(again.objects["module"].state_dict()[name], weight)


MISTAKES = [
    ("stages.better.trainer.max_stesp=3", r"^stages.better.trainer.max_stesp: Trainer has no argument max_stesp; did"),
    ("stages.better.trainer.max_steps=x", r"^stages.better.trainer.max_steps: expected int, got 'x'$"),
    ("stages.better.trainer.max_steps=-1", r"^stages.better.trainer.max_steps: say how long to train"),
    ("stages.better.trainer.logger=false", r"^stages.better.trainer.logger: this is set by the experiment runner"),
    ("stages.better.inputs.line=null", r"^stages.better.inputs.line: this input is not given; .*inputs.line=PATH$"),
    ("stages.better.inputs.line=/nowhere", r"^stages.better.inputs.line: there is no file or directory /nowhere"),
    ("stages.better.inputs.line=stage:lin", r"^stages.better.inputs.line: there is no earlier stage lin; did you mean"),
    ("stages.better.module=null", r"^stages.better: give either a job or a module"),
    (
        "stages.better.module.class_path=tests.experiments.engine.toy.ToyJob",
        r"^stages.better.module.class_path: expected a Li",
    ),
    ("stages.better.datamodule=null", r"^stages.better.datamodule: a module needs a datamodule"),
    ("stages.better.callbacks.x=3", r"^stages.better.callbacks.x: expected class_path and init_args, got 3$"),
    ("stages.better.fit=false", r"^stages.better.fit: neither fit nor test is asked for"),
    ("stages.better.seed=${inputs.line}", r"^stages.better.seed: expected int, got "),
    (
        "stages.line.checkpoint.every_s=0",
        r"^stages.line.checkpoint.every_s: expected a positive number, or null for n",
    ),
    ("stages.corpus.trainer.max_steps=3", r"^stages.corpus.trainer: a job has no trainer"),
    (
        "stages.corpus.job.class_path=tests.experiments.engine.toy.ToyModule",
        r"^stages.corpus.job.class_path: .* no method run",
    ),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_mistake_in_any_stage_is_found_before_the_first_runs(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_of(file, override)
    assert "\n" not in str(caught.value)
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.corpus.job.init_args.number=-1", r"^stages.corpus.job: number is -1; give 0 or more$"),
        ("stages.line.trainer.accelerator=tpu", r"^stages.line.trainer: "),
        (
            "stages.line.datamodule.init_args.root=/",
            r"^stages.line: / holds no number.txt; give the directory of a ToyJob",
        ),
    ],
)
def test_what_our_code_refuses_is_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(file, override)


@pytest.mark.parametrize(("kind", "error"), [("user", ConfigError), ("missing", ConfigError), ("defect", ValueError)])
def test_a_failing_job_shows_a_traceback_only_for_a_defect(tmp_path: Path, kind: str, error: type) -> None:
    file = tmp_path / "failing.yaml"
    file.write_text(f"job: {{class_path: tests.experiments.engine.toy.FailingJob, init_args: {{kind: {kind}}}}}\n")
    with pytest.raises(error) as caught:
        run(file)
    assert isinstance(caught.value, ConfigError) == (kind != "defect")
    assert not list((tmp_path / "runs").glob("*/*/finished.json"))


def test_trained_parts_are_loaded_after_a_move_too(file: Path) -> None:
    _, line, better = run(file)
    module = load_trained(line.run.directory)
    assert isinstance(module, ToyModule) and not module.training
    for name, weight in line.objects["module"].state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weight, rtol=0, atol=0)
    part = load_trained(better.run.directory, attribute="part")
    torch.testing.assert_close(part.state_dict(), module.net.state_dict(), rtol=0, atol=0)
    moved = (file.parent / "runs").rename(file.parent / "elsewhere")
    load_trained(moved / "toy" / better.run.directory.name, attribute="net.0")
    with pytest.raises(ValueError, match="has no nett"):
        load_trained(moved / "toy" / line.run.directory.name, attribute="nett")
    with pytest.raises(ValueError, match="the run of a job"):
        load_trained(next((moved / "toy").glob("corpus-*")))
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        load_trained(moved)
    (moved / "toy" / line.run.directory.name / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_trained(moved / "toy" / line.run.directory.name)


def test_weights_of_another_shape_are_refused(file: Path) -> None:
    line = run(file)[1]
    config = line.run.config_file
    config.write_text(config.read_text().replace("toy.ToyModule", "toy.WideModule"))
    with pytest.raises(ValueError, match="does not fit its module: .* has the shape .*, where .* is needed"):
        load_trained(line.run.directory)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        with pytest.raises(ConfigError, match="another process is working in"):
            with exclusive(tmp_path):
                pass
    with exclusive(tmp_path):
        pass


def test_fingerprints_follow_content(tmp_path: Path) -> None:
    first: dict[str, Any] = {"a": 1, "b": {"c": [1, 2]}}
    assert fingerprint_of(first) == fingerprint_of({"b": {"c": [1, 2]}, "a": 1})
    assert fingerprint_of(first) != fingerprint_of({"a": 1, "b": {"c": [2, 1]}})
    (tmp_path / "corpus" / "audios").mkdir(parents=True)
    before = fingerprint_of_path(tmp_path / "corpus")
    assert fingerprint_of_path(tmp_path / "corpus") == before
    (tmp_path / "corpus" / "audios" / "a.wav").write_text("x")
    assert fingerprint_of_path(tmp_path / "corpus") != before
    write_json(tmp_path / "corpus" / "finished.json", {"fingerprint": "abc", "metrics": {"x": torch.tensor(1.5)}})
    assert fingerprint_of_path(tmp_path / "corpus") == "abc"
    assert json.loads((tmp_path / "corpus" / "finished.json").read_text())["metrics"] == {"x": 1.5}
    assert not list((tmp_path / "corpus").glob(".*.partial"))

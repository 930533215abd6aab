"""Every stage is built without weights before the first one runs, so that what does not fit is told at once."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from experiments.engine.configuration.errors import ConfigError
from experiments.engine.pipeline import execute
from experiments.engine.plan import Plan, make_plan
from lightning_modules.errors import UserError
from tests.experiments.engine.toy import ToyData, ToyJob, ToyModule

PIPELINE = f"""
stages:
  corpus: {{job: {{class_path: tests.experiments.engine.toy.ToyJob}}}}
  line:
    inputs: {{corpus: "stage:corpus"}}
    module: {{class_path: tests.experiments.engine.toy.ToyModule, init_args: {{width: 8}}}}
    datamodule: {{class_path: {__name__}.FieldsData, init_args: {{root: "${{inputs.corpus}}"}}}}
    trainer: {{max_steps: 1, accelerator: cpu, enable_progress_bar: false}}
  stacked:
    inputs: {{line: "stage:line"}}
    module:
      class_path: {__name__}.StackedModule
      init_args:
        width: 8
        part:
          class_path: experiments.engine.artifacts.load_trained
          init_args: {{run: "${{inputs.line}}", attribute: net}}
    datamodule: {{class_path: {__name__}.FieldsData}}
    trainer: {{max_steps: 2, accelerator: cpu, enable_progress_bar: false}}
"""


class FieldsData(ToyData):
    def __init__(self, root: Path | None = None, fields: Sequence[str] = ("x", "y")) -> None:
        super().__init__(root)
        self.fields = fields


class StackedModule(ToyModule):
    """Only fits a part of its own width, and needs `y` of the data."""

    def __init__(self, width: int, part: nn.Module) -> None:
        super().__init__(width, part=part)
        assert isinstance(part, nn.Sequential) and isinstance(part[0], nn.Linear)
        if part[0].out_features != width:
            raise UserError(f"width is {width}, but the part's is {part[0].out_features}; give both the same")

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        for split, names in fields.items():
            if "y" not in names:
                raise UserError(f"{split} batches hold no y; add it to fields")


class SpeakingModule(StackedModule):
    """Knows the tokens of one codec."""

    def check_tokens(self, num_codes: int | None, corpora: Mapping[str, str]) -> None:
        if num_codes != len(corpora):
            raise UserError(f"num_codes is {num_codes}, but there are {sorted(corpora)}; give both the same")


class SpokenData(FieldsData):
    """Says what codec wrote it."""

    def __init__(self, root: Path | None = None, num_codes: int | None = 1) -> None:
        super().__init__(root)
        self.num_codes = num_codes

    def token_formats(self) -> dict[str, str]:
        return {"/data": "neucodec"}


class Limited(Callback):
    """Needs some steps and a module of some width."""

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step

    def check(self, module: ToyModule, max_steps: float) -> None:
        assert module.net[0].weight.is_meta
        if self.last_step > max_steps:
            raise UserError(f"last_step is {self.last_step}, but training ends at {max_steps}; make it earlier")


class ReadingJob(ToyJob):
    """Reads a file when it is built, unlike ours."""

    def __init__(self, file: Path) -> None:
        super().__init__(len(file.read_text()))


class MeasuringJob(ToyJob):
    """Cannot be built without weights: it looks at the content of a tensor."""

    def __init__(self) -> None:
        super().__init__(int(torch.ones(3).sum().item()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(PIPELINE)
    return tmp_path / "toy.yaml"


def plan_of(file: Path, *overrides: str, **flags: bool) -> Plan:
    return make_plan(file, [f"runs_dir={file.parent}/runs", *overrides], **flags)


def a(name: str, **arguments: Any) -> str:
    inner = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"{{class_path: {__name__}.{name}, init_args: {{{inner}}}}}"


TRAINER = "stages.stacked.trainer"
MISTAKES = [
    ("stages.stacked.module.init_args.width=9", r"^stages.stacked.module: width is 9, but the part's is 8; give both"),
    ("stages.line.module.init_args.width=9", r"^stages.stacked.module: width is 8, but the part's is 9; give both"),
    ("stages.corpus.job.init_args.number=-1", r"^stages.corpus.job: number is -1; give 0 or more$"),
    (
        "stages.stacked.module.init_args.part.init_args.attribute=nett",
        r"^stages.stacked.module.init_args.part: the module of .* has no nett: .*; name one of its parts$",
    ),
    (
        "stages.stacked.inputs.line=stage:corpus",
        r"^stages.stacked.module.init_args.part: .* is the run of a job and holds no module",
    ),
    ("stages.stacked.datamodule.init_args.fields=[x]", r"^stages.stacked.datamodule: train batches hold no y; add it"),
    (
        f"stages.stacked.callbacks.x={a('Limited', last_step=3)}",
        r"^stages.stacked.callbacks.x: last_step is 3, but",
    ),
    (f"stages.last.job={a('ReadingJob', file='/nowhere')}", r"^stages.last.job: there is no file /nowhere; "),
    (f"{TRAINER}.max_steps=-5", rf"^{TRAINER}: .*max_steps"),
    (f"{TRAINER}.precision=7", rf"^{TRAINER}.*precision"),
    (f"{TRAINER}.strategy=telepathy", rf"^{TRAINER}: .*telepathy"),
    (f"{TRAINER}.accelerator=abacus", rf"^{TRAINER}: .*abacus"),
    pytest.param(
        f"{TRAINER}.accelerator=gpu",
        rf"^{TRAINER}: .*gpu",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    ),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_what_does_not_fit_is_told_before_the_first_stage(file: Path, override: str, message: str) -> None:
    if override.startswith("stages.last"):
        file.write_text(PIPELINE + "  last: {}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        plan_of(file, override)
    assert "\n" not in str(caught.value)
    assert not (file.parent / "runs").exists()


def test_a_corpus_of_another_codec_is_told_before_the_first_stage(file: Path) -> None:
    spoken = PIPELINE.replace("StackedModule", "SpeakingModule").replace("FieldsData}}", "SpokenData}}")
    file.write_text(spoken.replace("FieldsData}", "SpokenData}"))
    assert plan_of(file).stages[-1].unchecked == []
    with pytest.raises(ConfigError, match=r"^stages.stacked: num_codes is 2, but there are \['/data'\]; give both"):
        plan_of(file, "stages.stacked.datamodule.init_args.num_codes=2")
    assert not (file.parent / "runs").exists()


def test_a_plan_knows_steps_and_processes(file: Path) -> None:
    many = ("stages.line.trainer.devices=2", "stages.line.trainer.strategy=ddp")
    epochs = ("stages.stacked.trainer.max_steps=-1", "stages.stacked.trainer.max_epochs=1")
    late = f"stages.stacked.callbacks.x={a('Limited', last_step=10**9)}"  # whether that step comes is not known yet
    plan = plan_of(file, *many, *epochs, late)
    assert [planned.unchecked for planned in plan.stages] == [[], [], []]
    assert [planned.world_size for planned in plan.stages] == [1, 2, 1]
    assert [planned.max_steps for planned in plan.stages] == [math.inf, 1, math.inf]


def test_what_an_earlier_stage_writes_is_not_missed_before_its_turn(file: Path) -> None:
    job = a("ReadingJob", file='"${inputs.corpus}/number.txt"')
    reading = PIPELINE + f'  last: {{inputs: {{corpus: "stage:corpus"}}, job: {job}}}\n'
    file.write_text(reading)
    plan = plan_of(file)
    assert plan.stages[-1].unchecked == ["stages.last.job"]
    execute(plan)
    assert plan_of(file, redo=True).stages[-1].unchecked == []
    file.write_text(reading.replace("number.txt", "nowhere.txt"))
    with pytest.raises(ConfigError, match=r"^stages.last.job: there is no file .*nowhere.txt"):
        plan_of(file)


def test_what_cannot_live_without_content_is_left_for_its_turn(file: Path) -> None:
    plan = plan_of(file, f"stages.corpus.job={a('MeasuringJob')}")
    assert plan.stages[0].unchecked == ["stages.corpus.job"]


def test_finished_stages_are_not_built_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(plan_of(file))

    def fail(self: Any, *arguments: Any, **named: Any) -> None:
        raise UserError("it was built")

    monkeypatch.setattr(FieldsData, "__init__", fail)
    plan_of(file)
    with pytest.raises(ConfigError, match="it was built"):
        plan_of(file, redo=True)


def test_planning_leaves_no_trace(file: Path) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    plan_of(file, "stages.line.trainer.deterministic=true")
    assert states() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.empty(1).device.type == "cpu"

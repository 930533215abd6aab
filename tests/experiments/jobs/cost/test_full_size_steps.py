"""Steps of an experiment whose weights are drawn, at tiny size on a CPU."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.engine.runs import read_json
from experiments.jobs.cost.full_size_steps import FullSizeSteps, draw
from experiments.jobs.cost.memory_estimate import MemoryEstimate
from lightning_modules.errors import UserError
from tests.experiments.paper_inputs import tiny_overrides, write_inputs


def tiny_estimate(folder: Path, **settings: int) -> MemoryEstimate:
    overrides = write_inputs("one_gpu_1b", folder, full_size=False) + tiny_overrides("one_gpu_1b")
    return MemoryEstimate("paper/one_gpu_1b", overrides, num_units=24, num_rows=2, num_text_tokens=6, **settings)


def test_each_stage_takes_its_steps_and_stands_beside_its_estimate(tmp_path: Path) -> None:
    stages = ["thinker", "distilled_talkers"]
    steps = FullSizeSteps(tiny_estimate(tmp_path), "cpu", num_steps=2, num_warm_ups=1, only_stages=stages)
    found = steps.run(tmp_path)
    written = read_json(tmp_path / "steps.json")["stages"]
    assert list(written) == stages and found.keys() == {f"{name}/step_ms" for name in stages}
    for name, stage in written.items():
        assert stage["step_ms"][0] == found[f"{name}/step_ms"] > 0 and stage["estimated_gb"] > 0
        assert stage["peak_gb"] is None, "PyTorch does not count the memory of a CPU"
    assert "| distilled_talkers | 2 replies of 24, bf16-mixed |" in (tmp_path / "steps.md").read_text()


def test_what_is_shared_stays_shared() -> None:
    with torch.device("meta"):
        first, second = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        norm = nn.BatchNorm1d(4)
    second.weight = first.weight
    draw([nn.Sequential(first, norm), second], torch.device("cpu"), torch.Generator().manual_seed(0))
    assert first.weight is second.weight and first.weight.abs().sum() > 0 and not first.weight.is_meta
    assert norm.num_batches_tracked == 0 and not norm.running_mean.is_meta  # type: ignore[union-attr]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_shards is 2"):
        FullSizeSteps(MemoryEstimate("paper/one_gpu_1b", num_shards=2))
    with pytest.raises(UserError, match="only_stages names none"):
        FullSizeSteps(tiny_estimate(tmp_path), "cpu", only_stages=["codec"]).run(tmp_path)

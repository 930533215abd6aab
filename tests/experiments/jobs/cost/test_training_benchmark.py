"""The benchmark of training steps times steps of each talker, in turn, and profiles the parts of others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.engine.runs import read_json
from experiments.jobs.cost import training_benchmark
from experiments.jobs.cost.training_benchmark import FrozenThinker, TrainingBenchmark
from lightning_modules.errors import UserError
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.thinker.adaptor import Adaptor
from tests.lightning_modules.talker.conftest import build_talker
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder

KINDS = ("ntp", "mtp", "mdm", "set_block")
SMALL: dict[str, Any] = {"num_rows": 2, "num_units": 20, "num_text_tokens": 4, "query_s": 0.5, "num_rounds": 2}


def make_talkers(hidden_size: int = 32, embedding_size: int = 32) -> dict[str, AnchoredTalker]:
    talkers = {kind: build_talker(kind, hidden_size, embedding_size) for kind in KINDS}
    return {kind: talker for kind, talker in talkers.items() if isinstance(talker, AnchoredTalker)}


def run(folder: Path, benchmark: TrainingBenchmark) -> dict[str, Any]:
    """Run it on the CPU, as on a machine without a GPU."""
    benchmark.device = torch.device("cpu")
    metrics = benchmark.run(folder)
    measured = read_json(folder / "measured.json")
    assert {f"{name}/tokens_per_s" for name in measured["talkers"]} == metrics.keys()
    return measured


def test_each_talker_takes_each_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts a second for each look at it, a talker's part of the step takes one second of two."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(training_benchmark.time, "perf_counter", lambda: float(next(ticks)))
    thinker = FrozenThinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model())
    measured = run(tmp_path, TrainingBenchmark(make_talkers(), thinker, autocast=True, **SMALL))
    assert measured["about"]["precision"] == "float32, autocast to bfloat16"
    for figures in measured["talkers"].values():
        shares = {part: median for part, (median, _, _) in figures["parts_percent"].items()}
        assert list(shares) == ["data", "encoder", "thinker", "forward", "backward", "optimizer", "rest"]
        assert min(shares.values()) > 0 and sum(shares.values()) == pytest.approx(100, abs=25), "medians of shares"
        assert shares["forward"] > shares["data"]
        assert figures["step_ms"] == [2000.0] * 3
        median, low, high = figures["tokens_per_s"]
        assert 20 <= low <= median <= high <= 40, "2 replies of 10 to 20 tokens in 1 s"
    assert measured["talkers"]["ntp"]["tokens_per_s"] == measured["talkers"]["mdm"]["tokens_per_s"], "the same batches"
    assert (tmp_path / "results.md").read_text().count("| 2,000 (2,000 to 2,000) |") == 4


def test_large_talkers_share_a_backbone_and_each_takes_its_steps(tmp_path: Path) -> None:
    talkers = make_talkers(12, 10)
    heads = {name: talker.head.weight.detach().clone() for name, talker in talkers.items()}
    benchmark = TrainingBenchmark(talkers, shares_backbone=True, precision="bfloat16", **SMALL)
    assert len({id(talker.backbone) for talker in talkers.values()}) == 1
    measured = run(tmp_path, benchmark)
    shares = measured["talkers"]["ntp"]["parts_percent"]
    assert shares.keys() == {"data", "forward", "backward", "optimizer", "rest"}
    for name, talker in talkers.items():
        assert talker.head.weight.dtype == torch.bfloat16
        assert not torch.equal(talker.head.weight.float(), heads[name]), "a step was taken"


def test_flex_attention_is_compared_on_a_gpu_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = TrainingBenchmark(make_talkers(), compares_flex_attention=True, **SMALL)
    benchmark.device = torch.device("cpu")
    assert benchmark.run(tmp_path) == {} and "no GPU" in capsys.readouterr().out
    labels = [(one.label, one.is_flex) for one in benchmark._variants()]
    assert labels[:4] == [("ntp", False), ("ntp, flex", True), ("mtp", False), ("mtp, flex", True)]
    benchmark.compares_flex_attention = False
    assert [one.label for one in benchmark._variants()] == list(KINDS)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="give at least one"):
        TrainingBenchmark({})
    with pytest.raises(UserError, match="precision is 'half'; choose one of float32, bfloat16"):
        TrainingBenchmark(make_talkers(), precision="half")
    with pytest.raises(UserError, match="num_units is 1"):
        TrainingBenchmark(make_talkers(), num_units=1)

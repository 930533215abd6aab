"""What a training costs is measured over its own steps and stands in each of its runs."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.runtime.training_cost import TrainingCost, peak_memory_gb
from datamodules.batch import SpokenBatch

SLEEP_S = 0.05


class SleepingModule(L.LightningModule):
    """A step takes 0.05 s, a validation ten times as long."""

    log_every_n_steps = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        time.sleep(SLEEP_S)
        return self.weight.square()

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        time.sleep(10 * SLEEP_S)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_batch(lengths: list[int], **fields: Any) -> SpokenBatch:
    rows = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    units = {"units": rows, "unit_lengths": torch.tensor(lengths), **fields}
    return SpokenBatch(["it"] * len(lengths), ["Yes."] * len(lengths), **units)


def scalars_of(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def fit(
    folder: Path, batches: list[SpokenBatch], module: L.LightningModule | None = None, **settings: Any
) -> dict[str, dict[str, list[float]]]:
    loggers = [TensorBoardLogger(folder, name, "") for name in ("ntp", "mdm")]
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=loggers, callbacks=[TrainingCost()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    loaders = (DataLoader(one, batch_size=None) for one in (batches, batches[:1]))
    trainer.fit(module or SleepingModule(), *loaders)
    return {name: scalars_of(folder / name) for name in ("ntp", "mdm")}


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_each_run_has_padding_tokens_time_and_memory(tmp_path: Path) -> None:
    batches = [make_batch([10, 5]), make_batch([10, 10]), make_batch([4, 1]), make_batch([4, 1])]
    found = fit(tmp_path, batches, val_check_interval=1)
    assert found["ntp"] == found["mdm"]
    cost = found["ntp"]
    assert cost["train/padding_share"] == pytest.approx([5 / 40, 6 / 16])
    assert len(cost["train/step_s"]) == 2
    for step_s, tokens_per_s, num_tokens in zip(
        cost["train/step_s"], cost["train/tokens_per_s"], (35, 10), strict=True
    ):
        assert SLEEP_S <= step_s < 10 * SLEEP_S, "the validations do not count"
        assert tokens_per_s == pytest.approx(num_tokens / (2 * step_s), rel=1e-5)
    assert all(0.05 < memory_gb < 100 for memory_gb in cost["train/peak_memory_gb"])


class TwoParts(SleepingModule):
    """Two parts that train at different rates, and warm up."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"ntp": nn.Linear(1, 1), "mdm": nn.Linear(1, 1)})

    def trained_parts(self) -> dict[str, nn.Module]:
        return dict(self.parts.items())

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        return torch.stack([one.square().sum() for one in self.parameters()]).sum()

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.parts[name].parameters(), "lr": rate} for name, rate in (("ntp", 0.1), ("mdm", 0.4))]
        optimizer = torch.optim.SGD(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_each_run_has_the_learning_rate_of_its_part_and_the_page_of_curves(tmp_path: Path) -> None:
    found = fit(tmp_path, [make_batch([2, 1])] * 4, TwoParts())
    for name, peak in (("ntp", 0.1), ("mdm", 0.4)):
        assert found[name]["train/learning_rate"] == pytest.approx([peak / 3, peak / 5])
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        assert events.Tensors("custom_scalars__config__")


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_step_of_two_batches_is_one_step(tmp_path: Path) -> None:
    batches = [make_batch([2, 1])] * 8
    (step_s, _) = fit(tmp_path, batches, accumulate_grad_batches=2)["ntp"]["train/step_s"]
    assert step_s >= 2 * SLEEP_S


def test_peak_memory_grows_by_what_is_held() -> None:
    before = peak_memory_gb(torch.device("cpu"))
    held = torch.ones(max(1, round(before * 1e9 / 4)) + 25_000_000)
    assert peak_memory_gb(torch.device("cpu")) >= min(before, held.nbytes / 1e9) + 0.09

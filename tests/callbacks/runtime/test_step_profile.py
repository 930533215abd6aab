"""The parts of a step are told apart by PyTorch's profiler; their times are those of what ran in them."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from callbacks.runtime.step_profile import StepProfile
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from tests.callbacks.runtime.test_training_cost import scalars_of
from tests.lightning_modules.talker.conftest import build_talker
from tests.lightning_modules.test_speech_llm import make_batch, make_thinker

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
SLEEPS_MS = {"encoder": 30, "thinker": 60, "ntp": 90}


class SleepingModule(L.LightningModule):
    """Sleeps in nested ranges, as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        with record_function("step/thinker"):
            time.sleep(SLEEPS_MS["thinker"] / 1000)
            with record_function("step/encoder"):
                time.sleep(SLEEPS_MS["encoder"] / 1000)
        with record_function("step/ntp"):
            time.sleep(SLEEPS_MS["ntp"] / 1000)
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, module: L.LightningModule, batches: Any, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    loggers = [TensorBoardLogger(folder, name, "") for name in ("ntp", "mdm")]
    trainer = L.Trainer(
        accelerator="cpu", logger=loggers, callbacks=list(callbacks), enable_checkpointing=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def test_nested_ranges_are_told_apart(tmp_path: Path) -> None:
    fit(tmp_path, SleepingModule(), [torch.zeros(())] * 3, StepProfile(wait=0, warmup=1, active=2), max_steps=3)
    found = json.loads((tmp_path / "step_profile.json").read_text())
    assert found.keys() == {*SLEEPS_MS, "backward", "optimizer", "data", "rest"}
    for part, slept in SLEEPS_MS.items():
        assert slept <= found[part], "no part may lose what it took"
    assert min(found.values()) >= 0
    for name in ("ntp", "mdm"):
        logged = scalars_of(tmp_path / name)
        assert {tag: values for tag, values in logged.items() if tag.startswith("step/")} == {
            f"step/{part}_ms": pytest.approx([value]) for part, value in found.items()
        }


def test_a_speech_llm_marks_its_parts(tmp_path: Path) -> None:
    llm = SpeechLLM(make_thinker(), {kind: build_talker(kind, 32, 32) for kind in ("ntp", "mdm")}, warmup_steps=0)
    fit(tmp_path, llm, [make_batch(0)] * 2, StepProfile(wait=0, warmup=1, active=1), max_steps=2)
    found = json.loads((tmp_path / "step_profile.json").read_text())
    assert found.keys() == {"data", "encoder", "thinker", "ntp", "mdm", "backward", "optimizer", "rest"}
    assert all(found[part] > 0 for part in ("encoder", "thinker", "ntp", "mdm", "backward", "optimizer"))


def test_a_training_that_ends_earlier_reports_nothing_wrong(tmp_path: Path) -> None:
    fit(tmp_path, SleepingModule(), [torch.zeros(())], StepProfile(wait=5), max_steps=1)
    assert not (tmp_path / "step_profile.json").exists()


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="active is 0"):
        StepProfile(active=0)
    with pytest.raises(UserError, match="wait is -1"):
        StepProfile(wait=-1)

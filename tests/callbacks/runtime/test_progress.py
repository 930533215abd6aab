"""The bar goes to `max_steps`, from where the training stands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.progress import StepProgress
from tests.experiments.engine.toy import ToyData, ToyModule


def make_trainer(file: Path, **arguments: Any) -> Trainer:
    return Trainer(
        **arguments,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[StepProgress(label="line"), LastCheckpoint(file)],
    )


def test_steps_epochs_and_test_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "last.ckpt"
    module = ToyModule()
    make_trainer(file, max_steps=7).fit(module, datamodule=ToyData())
    shown = capsys.readouterr().err
    assert "line fit: 100%" in shown and "7/7" in shown and "train/loss=" in shown and "v_num" not in shown
    trainer = make_trainer(file, max_steps=9)
    trainer.fit(module, datamodule=ToyData(), ckpt_path=str(file))
    shown = capsys.readouterr().err
    assert "7/9" in shown and "9/9" in shown and "0/9" not in shown
    trainer.test(module, datamodule=ToyData(), verbose=False)
    assert "line test: 100%" in (shown := capsys.readouterr().err) and "2/2" in shown
    make_trainer(file, max_epochs=2, accumulate_grad_batches=2).fit(module, datamodule=ToyData())
    assert "6/6" in capsys.readouterr().err


def test_a_disabled_bar_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path / "last.ckpt", max_steps=1)
    trainer.progress_bar_callback.disable()
    trainer.fit(ToyModule(), datamodule=ToyData())
    assert "fit" not in capsys.readouterr().err
    trainer.progress_bar_callback.print("above", "the bar")
    assert "above the bar" in capsys.readouterr().out


def test_losses_that_a_module_shows_stand_in_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = ToyModule()
    module.shown_losses = {"mdm/loss": torch.tensor(1.25)}  # type: ignore[assignment]
    make_trainer(tmp_path / "last.ckpt", max_steps=2).fit(module, datamodule=ToyData())
    assert "mdm/loss=1.25" in capsys.readouterr().err

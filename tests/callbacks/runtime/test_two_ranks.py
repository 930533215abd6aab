"""Devices that train together save and stop together, whatever their clocks say and whichever was told."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from callbacks.runtime import last_checkpoint
from callbacks.runtime.interrupt import InterruptHandler
from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.signals import Interrupted
from callbacks.runtime.step_seeding import StepSeeding
from tests.experiments.engine.toy import ToyData, ToyModule
from tests.two_ranks import make_trainer, on_two_ranks


class Saves(LastCheckpoint):
    """Notes at which steps it saves."""

    def __init__(self, file: Path, **policy: Any) -> None:
        super().__init__(file, **policy)
        self.steps: list[int] = []

    def save(self, trainer: Trainer) -> None:
        self.steps.append(trainer.global_step)
        super().save(trainer)


def fit(checkpoint: LastCheckpoint, *callbacks: Callback) -> None:
    torch.manual_seed(0)
    trainer = make_trainer(2, max_steps=7, callbacks=[*callbacks, checkpoint], enable_checkpointing=True)
    trainer.fit(ToyModule(), datamodule=ToyData())


def save_by_the_clock(rank: int, folder: str) -> list[int]:
    """The shipped default, every 60 s; the clock of rank 1 alone jumps in the second batch."""
    seconds = iter([0.0, 0.0, 1.0, 61.0 * rank] + [62.0] * 100)
    last_checkpoint.time = SimpleNamespace(monotonic=lambda: next(seconds))  # type: ignore[assignment]
    checkpoint = Saves(Path(folder) / "last.ckpt")
    assert checkpoint.every_s == 60.0
    fit(checkpoint)
    return checkpoint.steps


def test_clocks_that_differ_save_together(tmp_path: Path) -> None:
    first, second = on_two_ranks(save_by_the_clock, str(tmp_path))
    assert first == second == [2, 7]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


class Told(Callback):
    """Sends SIGTERM to this process before the third batch."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_one(rank: int, folder: str) -> tuple[int, str]:
    checkpoint = LastCheckpoint(Path(folder) / "last.ckpt")
    try:
        fit(checkpoint, *([Told()] if rank == 1 else []), InterruptHandler(checkpoint))
    except Interrupted as interrupted:
        return interrupted.exit_code, str(interrupted)
    return 0, "nobody stopped"


def test_all_stop_at_the_same_batch_when_one_is_told(tmp_path: Path) -> None:
    first, second = on_two_ranks(stop_one, str(tmp_path))
    assert first == second == (143, f"saved {tmp_path / 'last.ckpt'} at step 3")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


class Draws(Callback):
    """Notes what a step draws."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.found.append(float(torch.rand(1)))


def draw(rank: int, folder: str) -> list[float]:
    draws = Draws()
    fit(LastCheckpoint(Path(folder) / "last.ckpt"), StepSeeding(1), draws)
    return draws.found


def test_each_rank_draws_its_own_numbers_and_again_the_same(tmp_path: Path) -> None:
    first, second = on_two_ranks(draw, str(tmp_path))
    assert len(set(first + second)) == 14
    assert on_two_ranks(draw, str(tmp_path)) == [first, second]

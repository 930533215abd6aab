"""Checkpoints are whole at any moment, and come in their rhythm."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.step_seeding import StepSeeding
from tests.experiments.engine.toy import ToyData, ToyModule


def fit(checkpoint: LastCheckpoint, *callbacks: Any, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        **{"max_steps": 7, **arguments},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoint],
    )
    trainer.fit(ToyModule(), datamodule=ToyData())
    return trainer


@pytest.fixture
def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    save = Trainer.save_checkpoint

    def noting(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        steps.append(trainer.global_step)
        save(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", noting)
    return steps


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"every_n_steps": 3, "every_s": None}, [3, 6, 7]),
        ({"every_n_steps": 5, "every_s": None}, [6, 7]),  # the fifth batch is the last of its epoch: one later
        ({"every_n_steps": None, "every_s": 1e-9}, [1, 2, 3, 4, 6, 7, 7]),
        ({"every_n_steps": None, "every_s": None}, [7]),
    ],
)
def test_rhythm(tmp_path: Path, saved_steps: list[int], policy: dict[str, Any], expected: list[int]) -> None:
    fit(LastCheckpoint(tmp_path / "last.ckpt", **policy))
    assert saved_steps == expected
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_the_rhythm_does_not_change_the_training(tmp_path: Path) -> None:
    weights = []
    for number, every_n_steps in enumerate((None, 1, 4)):
        file = tmp_path / str(number) / "last.ckpt"
        fit(LastCheckpoint(file, every_n_steps=every_n_steps))
        weights.append(torch.load(file, weights_only=True)["state_dict"])
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=0)


def test_a_kill_while_writing_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    trainer = fit(LastCheckpoint(file))
    before = file.read_bytes()

    class Killed(BaseException):
        pass

    def write_half(path: Path) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise Killed

    monkeypatch.setattr(trainer, "save_checkpoint", write_half)
    with pytest.raises(Killed):
        LastCheckpoint(file).save(trainer)
    assert file.read_bytes() == before
    monkeypatch.undo()
    LastCheckpoint(file).save(trainer)
    assert torch.load(file, weights_only=True)["global_step"] == 7


class Writes:
    """Stands in for a trainer whose strategy writes a directory, or a file, with a number in it."""

    is_global_zero, strategy = True, SimpleNamespace(barrier=lambda name: None)

    def __init__(self, number: int, is_directory: bool) -> None:
        self.number, self.is_directory = number, is_directory

    def save_checkpoint(self, path: Path) -> None:
        if self.is_directory:
            path.mkdir()
        (path / "number" if self.is_directory else path).write_text(str(self.number))


@pytest.mark.parametrize("kinds", [(True, True, True), (True, False, True), (False, True, True, False)])
def test_a_directory_takes_the_place_of_a_file_or_a_directory_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[bool, ...]
) -> None:
    file = tmp_path / "last.ckpt"
    seen: list[str] = []
    replace = os.replace

    def read() -> str:
        return (file / "number" if file.is_dir() else file).read_text() if file.exists() else "none"

    def watched(source: Path, target: Path) -> None:
        seen.append(read())  # what a process finds that is killed here
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for number, is_directory in enumerate(kinds):
        seen.clear()
        LastCheckpoint(file).save(Writes(number, is_directory))  # type: ignore[arg-type]
        assert set(seen) == {str(number - 1) if number else "none"}
        assert read() == str(number)
        assert len(list(tmp_path.iterdir())) == 1 + is_directory, "nothing is left of older ones"


@pytest.mark.parametrize("policy", [{"every_n_steps": 0}, {"every_s": 0.0}, {"every_s": -1.0}])
def test_a_rhythm_without_progress_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give a positive number, or null"):
        LastCheckpoint(Path("last.ckpt"), **policy)


def test_the_random_numbers_of_a_step_are_a_function_of_seed_and_step() -> None:
    """Whatever was drawn before: a resumed run draws what an uninterrupted one does."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    drawn = []
    for seed, batch_idx in ((1, 5), (1, 5), (1, 6), (2, 5)):
        torch.rand(7 + len(drawn))
        StepSeeding(seed).on_train_batch_start(trainer, ToyModule(), None, batch_idx)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert drawn[0] == drawn[1]
    assert all(not set(a[0]) & set(b[0]) and a[2] != b[2] for a, b in zip(drawn[1:], drawn[2:], strict=False))

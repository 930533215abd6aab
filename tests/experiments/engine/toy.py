"""Tiny jobs, modules and data for the tests of the experiment runner."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.errors import UserError


class ToyJob:
    """Writes a number into a file."""

    def __init__(self, number: int = 1, label: str = "plain") -> None:
        """Create the job.

        Args:
            number: What to write.
            label: Anything.
        """
        if number < 0:
            raise UserError(f"number is {number}; give 0 or more")
        self.number = number

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write the number and count the runs."""
        count = output_dir / "count.txt"
        count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
        (output_dir / "number.txt").write_text(str(self.number))
        return {"number": self.number}


class ToyMeasuringJob:
    """Measures something, and lays it out."""

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write `results.md`."""
        (output_dir / "results.md").write_text("| rate |\n|---|\n| 12 |\n")
        return {"rate": 12}


class ToyComparison:
    """Writes the rows of a comparison, rates in proportion to a factor."""

    def __init__(self, rates: dict[str, float], factor: float = 1.0) -> None:
        """Create the job.

        Args:
            rates: Word error rate by `talker_steps`, or by the name of a reference.
            factor: Scales them.
        """
        self.rates, self.factor = rates, factor

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write `results.json`."""
        rows = []
        for name, rate in self.rates.items():
            talker, _, steps = name.partition("_")
            costs = {
                "text_exact_match": 0.9,
                "tokens_per_s": 100.0 * self.factor,
                "forwards_per_block": int(steps or 0),
            }
            row = {"name": name, "talker": talker if steps else None, "steps": int(steps) if steps else None}
            row |= {"rule": "", "num_examples": 100}
            wer = rate * self.factor
            row |= {"wer_micro": wer, "wer_macro": wer, "wer_interval": [0.5 * wer, 1.5 * wer]}
            rows.append({**row, **(costs if steps else dict.fromkeys(costs))})
        (output_dir / "results.json").write_text(json.dumps(rows))
        return {}


class FailingJob:
    """Fails by a mistake of the user or a defect of the program."""

    def __init__(self, kind: str) -> None:
        """Create the job.

        Args:
            kind: `user`, `missing` or `defect`.
        """
        self.kind = kind

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Fail."""
        if self.kind == "user":
            raise UserError("the corpus holds 3 examples; give at least 10")
        if self.kind == "missing":
            (output_dir / "nowhere.json").read_text()
        return {"number": int("seven")}


class ToyLoader:
    """Shuffled batches as a function of seed and epoch, resumable within an epoch."""

    def __init__(self, data: Tensor, batch_size: int, seed: int) -> None:
        """Create the loader.

        Args:
            data: (N, 2) float32 rows.
            batch_size: Rows a batch.
            seed: Seed of the order.
        """
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._epoch = 0
        self._position = 0

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self._data) // self._batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches that are left of this epoch."""
        order = torch.randperm(
            len(self._data), generator=torch.Generator().manual_seed(1000 * self._seed + self._epoch)
        )
        for index in range(self._position, len(self)):
            # the state names the next batch before this one is yielded: after the last one the caller may not return
            is_last = index + 1 == len(self)
            self._epoch, self._position = (self._epoch + 1, 0) if is_last else (self._epoch, index + 1)
            start = index * self._batch_size
            yield self._data[order[start : start + self._batch_size]]

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from there."""
        self._epoch, self._position = state["epoch"], state["position"]


class ToyData(LightningDataModule):
    """Points on a line, with noise."""

    def __init__(self, root: Path | None = None, num_rows: int = 20, batch_size: int = 4, seed: int = 0) -> None:
        """Create the data.

        Args:
            root: Directory that must exist, if given.
            num_rows: Number of points.
            batch_size: Points a batch.
            seed: Seed of points and order.
        """
        super().__init__()
        self._root, self._num_rows, self._batch_size, self._seed = root, num_rows, batch_size, seed

    def setup(self, stage: str) -> None:
        """Make the points."""
        if self._root is not None and not (self._root / "number.txt").is_file():
            raise FileNotFoundError(f"{self._root} holds no number.txt; give the directory of a ToyJob")
        x = torch.randn(self._num_rows, 1, generator=torch.Generator().manual_seed(self._seed))
        self._data = torch.cat([x, 3 * x + 1], dim=1)

    def train_dataloader(self) -> ToyLoader:
        """Return the resumable loader."""
        return ToyLoader(self._data, self._batch_size, self._seed)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return one batch."""
        return DataLoader(self._data[:4], batch_size=4)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return two batches."""
        return DataLoader(self._data[:8], batch_size=4)  # type: ignore[arg-type]


class ToyModule(LightningModule):
    """A line with dropout: the random numbers matter, and Adam's moments do too."""

    def __init__(
        self, width: int = 8, dropout: float = 0.5, learning_rate: float = 0.01, part: nn.Module | None = None
    ) -> None:
        """Create the module.

        Args:
            width: Hidden width.
            dropout: Dropout rate.
            learning_rate: Learning rate.
            part: A trained part from elsewhere.
        """
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.Dropout(dropout), nn.Tanh(), nn.Linear(width, 1))
        self.learning_rate = learning_rate
        self.part = part

    @property
    def run_names(self) -> list[str]:
        """Names of the TensorBoard runs."""
        return ["red", "blue"]

    def _loss(self, batch: Tensor) -> Tensor:
        return (self.net(batch[:, :1]) - batch[:, 1:]).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss."""
        self.log("test/loss", self._loss(batch), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class LossFile(Callback):
    """Appends every training loss to a file of the run."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append one line."""
        with open(Path(trainer.default_root_dir) / "losses.txt", "a") as file:
            file.write(f"{trainer.global_step} {float(outputs['loss']):.9f}\n")


class RankLossFile(Callback):
    """Appends every training loss to a file of the run and the rank."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append one line."""
        with open(Path(trainer.default_root_dir) / f"losses-{trainer.global_rank}.txt", "a") as file:
            file.write(f"{trainer.global_step} {float(outputs['loss']):.9f}\n")


class SignalAt(Callback):
    """Sends a signal to this process at one step, once in the life of a marker file."""

    def __init__(self, signal_name: str, step: int, marker: Path, hook: str = "train_batch", rank: int = 0) -> None:
        """Create the callback.

        Args:
            signal_name: For instance SIGKILL.
            step: Global step at which to send it.
            marker: File that is made before; if it exists, nothing is sent.
            hook: `train_batch`, `validation` or `test`.
            rank: Which of several processes gets it.
        """
        self._rank = rank
        self._signum, self._step, self._marker, self._hook = signal.Signals[signal_name], step, marker, hook

    def _send(self, trainer: Trainer, hook: str) -> None:
        is_due = hook == self._hook and trainer.global_step >= self._step and trainer.global_rank == self._rank
        if is_due and not self._marker.exists():
            self._marker.write_text("sent")
            os.kill(os.getpid(), self._signum)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Send it in training."""
        self._send(trainer, "train_batch")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send it in validation."""
        self._send(trainer, "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send it in the test."""
        self._send(trainer, "test")


class WideModule(ToyModule):
    """The same, wider."""

    def __init__(self) -> None:
        """Create the module."""
        super().__init__(width=16)


class SlowJob:
    """Sleeps, and sends a signal to itself."""

    def __init__(self, signal_name: str) -> None:
        """Create the job.

        Args:
            signal_name: For instance SIGTERM.
        """
        self.signal_name = signal_name

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Send the signal and sleep."""
        os.kill(os.getpid(), signal.Signals[self.signal_name])
        time.sleep(10)
        return {}

"""What a training costs, in its TensorBoard runs: time per step, tokens per second, padding, memory."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks.runtime.board_layout import add_layout

# fields of a batch whose padding counts, the first one that is there
PADDED_FIELDS = ("units", "query", "reply")
RESET_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class TrainingCost(Callback):
    """Logs to every run, each ``log_every_n_steps`` of the module or the trainer, means since the time before.

    ``train/step_s`` is the time of an optimizer step, its batches included and validations not; ``train/tokens_per_s``
    counts the speech tokens of this device, without padding; ``train/padding_share`` is the share of the places for
    speech tokens (of samples where there are none) that hold padding; ``train/peak_memory_gb`` is the most memory that
    was ever held since the fit began: of PyTorch on a GPU, of the whole process on a CPU. ``train/learning_rate`` is
    that of the next step, in each run that of its own part. Each run also gets the page of curves that
    :data:`~callbacks.runtime.board_layout.LAYOUT` describes.
    """

    def __init__(self) -> None:
        self._start(0)

    def _start(self, step: int) -> None:
        self._since_s, self._since_step = time.monotonic(), step
        self._num_tokens = self._num_places = 0
        self._lengths: list[Tensor] = []
        self._has_units = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and forget the memory of what ran before."""
        _forget_peak(pl_module.device)
        self._start(trainer.global_step)
        for logger in tensorboard_runs(trainer):
            add_layout(logger.experiment)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._since_s += time.monotonic() - self._paused_s

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log when it is time."""
        for field in PADDED_FIELDS:
            places, lengths = getattr(batch, field, None), getattr(batch, field.rstrip("s") + "_lengths", None)
            if places is not None and lengths is not None:
                self._num_places += places.numel()
                self._lengths.append(lengths)
                self._has_units = field == "units"
                break
        num_steps = trainer.global_step - self._since_step
        every = getattr(pl_module, "log_every_n_steps", getattr(trainer, "log_every_n_steps", 1))
        if num_steps < every:
            return
        step_s = (time.monotonic() - self._since_s) / num_steps
        values = {"train/step_s": step_s, "train/peak_memory_gb": peak_memory_gb(pl_module.device)}
        if self._lengths:  # the host waits for lengths on a device, which are therefore added up here
            num_tokens = int(torch.stack([lengths.sum() for lengths in self._lengths]).sum())
            values["train/padding_share"] = 1 - num_tokens / self._num_places
            if self._has_units:
                values["train/tokens_per_s"] = num_tokens / (step_s * num_steps)
        for logger in tensorboard_runs(trainer):
            rate = _learning_rate(trainer, pl_module, str(logger.name))
            logger.log_metrics({**values, **rate}, trainer.global_step)
        self._start(trainer.global_step)


def tensorboard_runs(trainer: Trainer) -> list[TensorBoardLogger]:
    """Give the TensorBoard runs, on the first device alone."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _learning_rate(trainer: Trainer, module: LightningModule, run: str) -> dict[str, float]:
    """Give the learning rate of the part that a run is named after, of the whole module if there is no such part."""
    parts = module.trained_parts() if hasattr(module, "trained_parts") else {}
    own = {id(parameter) for parameter in parts.get(run, module).parameters()}
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups if any(id(one) in own for one in group["params"])]
    return {"train/learning_rate": float(max(rates))} if rates else {}


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET_PEAK.exists():
        RESET_PEAK.write_text("5")  # Linux then counts the most resident memory again


def peak_memory_gb(device: torch.device) -> float:
    """Give the most memory held so far, in 1e9 bytes: of PyTorch on a GPU, else of the process.

    On Linux that is since :class:`TrainingCost` last forgot it, elsewhere since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if STATUS.exists():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

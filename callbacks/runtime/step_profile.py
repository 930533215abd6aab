"""Which part of a training step takes how long, measured by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from callbacks.runtime.training_cost import tensorboard_runs
from datamodules.formats.atomic_files import write_json
from lightning_modules.number_checks import require_at_least

# Modules mark their parts by ranges with such names, "step/encoder", "step/thinker", "step/<talker>"; this callback
# marks what Lightning does between them.
PREFIX = "step/"
DATA, BACKWARD, OPTIMIZER, REST = "data", "backward", "optimizer", "rest"


class StepProfile(Callback):
    """Profiles some steps of a training, and logs the milliseconds of each part to every run.

    ``step/<part>_ms`` is the mean over the profiled batches: "data" (waiting for a batch, and moving it), "encoder",
    "thinker", each talker by its name, "backward" (of all losses), "optimizer" (clipping and step), and "rest". Where
    ranges lie within another the inner ones count. The means stand in `step_profile.json` beside the runs, too. On a
    GPU a part's time is that of its kernels; those that autograd's own thread starts are the backward's.

    Recording each operation slows down a step, small ones most: the shares are what is measured, and the time of
    a step is ``train/step_s`` of :class:`~callbacks.runtime.training_cost.TrainingCost` at other steps.

    Args:
        wait: Batches before the profiler starts.
        warmup: Batches with the profiler on whose times do not count.
        active: Batches that count.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, wait: int = 20, warmup: int = 2, active: int = 5) -> None:
        require_at_least(0, wait=wait)
        require_at_least(1, warmup=warmup, active=active)
        self.wait, self.warmup, self.active = wait, warmup, active
        self._profiler: profile | None = None
        self._open: record_function | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the profiler; what it does at which batch is in its schedule."""
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=lambda found: self._report(trainer, found.events() or [], pl_module.device),
            acc_events=True,
        )
        self._profiler.start()
        self._enter(DATA)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the wait for the batch."""
        self._enter(None)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Mark the backward pass."""
        self._enter(BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the backward pass."""
        self._enter(None)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Mark clipping and step, which end with the batch."""
        self._enter(OPTIMIZER)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on to the next batch; behind the last one that counts, the times are reported."""
        self._enter(None)
        if self._profiler is not None:
            self._profiler.step()
        self._enter(DATA)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validations out."""
        self._enter(None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the next batch again."""
        self._enter(DATA)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the profiler; if it has not come to its end, what it has counts."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the profiler."""
        self._stop()

    def _stop(self) -> None:
        self._enter(None)
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _enter(self, part: str | None) -> None:
        """End the range that is open, and open another one."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
        if part is not None and self._profiler is not None:
            self._open = record_function(PREFIX + part)
            self._open.__enter__()

    def _report(self, trainer: Trainer, events: Sequence[FunctionEvent], device: torch.device) -> None:
        if not trainer.is_global_zero:
            return
        milliseconds = split_of(events, on_gpu=device.type == "cuda")
        values = {f"{PREFIX}{part}_ms": value for part, value in milliseconds.items()}
        for logger in tensorboard_runs(trainer):
            logger.log_metrics(values, trainer.global_step)
        write_json(Path(trainer.default_root_dir) / "step_profile.json", milliseconds)


def split_of(events: Sequence[FunctionEvent], on_gpu: bool = False) -> dict[str, float]:
    """Sum up what a profiler has recorded of some steps.

    Args:
        events: What it has recorded.
        on_gpu: Take the time of kernels in place of that of the host.

    Returns:
        Mean milliseconds per step of each part, and of what lies in none, as "rest"; sums, if no steps were marked.
    """
    steps = [one for one in events if one.name.startswith("ProfilerStep") and one.device_type.name == "CPU"]
    marked = sorted(
        (one for one in events if one.name.startswith(PREFIX) and one.device_type.name == "CPU"),
        key=lambda one: (one.time_range.start, -one.time_range.end),
    )
    totals: dict[str, float] = {}
    around: list[FunctionEvent] = []  # ranges that the present one lies in, the innermost last
    for one in marked:
        while around and around[-1].time_range.end < one.time_range.end:
            around.pop()
        took = one.device_time_total if on_gpu else one.time_range.elapsed_us()
        totals[one.name] = totals.get(one.name, 0.0) + took
        if around:
            totals[around[-1].name] -= took
        around.append(one)
    parts = {name.removeprefix(PREFIX): took for name, took in totals.items()}
    if on_gpu:
        whole = sum(kernel.duration for one in events for kernel in one.kernels)
        # kernels that another thread started have no range around them: those of autograd
        parts[BACKWARD] = whole - sum(took for name, took in parts.items() if name != BACKWARD)
    else:
        whole = sum(one.time_range.elapsed_us() for one in steps)
        if steps:
            parts[REST] = whole - sum(parts.values())
    return {name: took / 1000 / max(1, len(steps)) for name, took in parts.items()}

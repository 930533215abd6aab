"""A progress bar with an estimate of the time that is left."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """One bar for the whole fit, in optimizer steps up to `max_steps`, and one for the test, in batches.

    Args:
        label: Text in front of the bar.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self._label = label
        self._bar: tqdm | None = None
        self._is_enabled = True
        self._show_losses_at_s = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bars."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where the training stands."""
        self._open("fit", _total_steps(trainer), trainer.global_step, "step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        if self._bar is None or self._bar.disable:
            return
        if time.monotonic() >= self._show_losses_at_s:
            self._show_losses_at_s = time.monotonic() + self._bar.mininterval
            self._bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last losses and close the bar."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of the test."""
        total = sum(trainer.num_test_batches)
        self._open("test", int(total) if total != float("inf") else None, 0, "batch")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar of the test."""
        if self._bar is not None:
            self._bar.update(1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of the test."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close whatever is open."""
        self._close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the module shows, for which the host waits, and the metrics logged with `prog_bar=True`."""
        shown = {name: float(loss) for name, loss in getattr(pl_module, "shown_losses", {}).items()}
        logged = super().get_metrics(trainer, pl_module).items()
        return {**shown, **{key: value for key, value in logged if key != "v_num"}}

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(kwargs.get("sep", " ").join(str(arg) for arg in args))

    def _open(self, what: str, total: int | None, initial: int, unit: str) -> None:
        self._close()
        interval_s = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            desc=f"{self._label} {what}".strip(),
            total=total,
            initial=initial,
            unit=unit,
            mininterval=interval_s,
            dynamic_ncols=True,
            disable=not self._is_enabled,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _total_steps(trainer: Trainer) -> int | None:
    """Return the number of optimizer steps of the fit, None when it cannot be known."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    num_epochs, num_batches = trainer.max_epochs, trainer.num_training_batches
    if num_epochs is None or num_epochs < 0 or num_batches == float("inf"):
        return None
    return num_epochs * math.ceil(num_batches / trainer.accumulate_grad_batches)

"""The newest checkpoint, written such that a kill at any moment leaves a whole one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_modules.errors import UserError


class LastCheckpoint(Checkpoint):
    """Writes one checkpoint file again and again: every so many batches or seconds, and at the end of the fit.

    The file is written beside its place and then renamed. Saving has no influence on the training, so that its rhythm
    may follow the clock. Several devices decide together: saving is a work of all.

    Args:
        file: Where the checkpoint lies.
        every_n_steps: Training batches between two checkpoints; not counted if None.
        every_s: Seconds between two checkpoints; not timed if None.

    Raises:
        UserError: An interval is not positive.
    """

    def __init__(self, file: Path, every_n_steps: int | None = None, every_s: float | None = 60.0) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_s", every_s)):
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}; give a positive number, or null to leave it out")
        self.file = file
        self.every_n_steps = every_n_steps
        self.every_s = every_s
        self._stop: BaseException | None = None
        self._num_batches = 0
        self._is_due = False
        self._saved_at_s = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time."""
        self._num_batches += 1
        by_steps = self.every_n_steps is not None and self._num_batches % self.every_n_steps == 0
        by_time = self.every_s is not None and time.monotonic() - self._saved_at_s >= self.every_s
        # The clocks of several devices differ, and one that saves alone waits for the others without end.
        by_time = trainer.strategy.reduce_boolean_decision(by_time, all=False)
        self._is_due |= by_steps or by_time or self._stop is not None
        if self._is_due and _is_good_moment(trainer, batch_idx):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished training."""
        self.save(trainer)

    def stop_after_saving(self, reason: BaseException) -> None:
        """Have a checkpoint written as soon as a run can be resumed from it exactly, and then an exception raised.

        Args:
            reason: What to raise then; on all devices at the same batch.
        """
        self._stop = reason

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint beside its place, then put it there in one step."""
        temporary = self.file.with_name(f".{self.file.name}.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            _put_in_place(temporary, self.file)
        trainer.strategy.barrier("LastCheckpoint.save")
        self._saved_at_s = time.monotonic()
        self._is_due = False
        if self._stop is not None:
            raise self._stop

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches."""
        return {"num_batches": self._num_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._num_batches = state_dict["num_batches"]


def _put_in_place(temporary: Path, file: Path) -> None:
    """Replace a checkpoint by another one, in one step.

    A directory cannot be replaced so. It goes to whichever of two places is free, and `file` is a link to it.
    """
    places = [file.with_name(f"{file.name}.{number}") for number in range(2)]
    current = file.with_name(os.readlink(file)) if file.is_symlink() else None
    free = places[1] if current == places[0] else places[0]
    if temporary.is_dir():
        shutil.rmtree(free, ignore_errors=True)
        os.replace(temporary, free)
        link = file.with_name(f".{file.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(free.name)
        os.replace(link, file)
        places.remove(free)
    else:
        os.replace(temporary, file)
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def _is_good_moment(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether a run that is resumed from here equals one that was never stopped.

    Gradients that wait for more batches are not in a checkpoint, and from the last batch of an epoch Lightning resumes
    with a validation of no batches, which an uninterrupted run does not have.
    """
    if trainer.is_last_batch:
        return trainer.num_training_batches <= trainer.accumulate_grad_batches
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0

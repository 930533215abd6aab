"""Ctrl-C and SIGTERM during a fit: finish the batch, save, and leave."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.signals import Interrupted, exit_at_once, signal_handlers

# So long may several devices take to finish a batch once one was told to stop: one may be dead, the others wait for it.
GRACE_S = 120.0


class InterruptHandler(Callback):
    """Lets a fit end well: the first signal finishes the batch and saves a checkpoint, the second ends at once.

    Several devices decide together, so that all save and stop at the same batch, whichever of them was told.

    Args:
        checkpoint: What saves.
    """

    def __init__(self, checkpoint: LastCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._signum: int | None = None
        self._num_processes = 1
        self._context: contextlib.AbstractContextManager[None] | None = None

    @property
    def signum(self) -> int | None:
        """The signal that asked this process, or one that trains with it, to stop."""
        return self._signum

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, whose own handlers know nothing of checkpoints."""
        self._signum, self._num_processes = None, trainer.world_size
        self._context = signal_handlers(self._remember)
        self._context.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a checkpoint and the end once a signal came."""
        self._pass_on(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back; a signal that came in the last validation still ends the program."""
        self._pass_on(trainer)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def _pass_on(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False):
            self._signum = self._signum or signal.SIGTERM
            saved = f"saved {self.checkpoint.file} at step {trainer.global_step}"
            self.checkpoint.stop_after_saving(Interrupted(self._signum, saved))

    def _release(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            exit_at_once(signum, frame)
        self._signum = signum
        if self._num_processes > 1:
            timer = threading.Timer(GRACE_S, exit_at_once, (signum, None))
            timer.daemon = True
            timer.start()
        print("\nstopping: finishing this step, then saving; once more to stop at once", file=sys.stderr, flush=True)

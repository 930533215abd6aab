"""Moves the masking of masked-diffusion talkers along a schedule while they train."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.masked_talkers import find_masked_talkers
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.masking.schedule import MaskingLevels, MaskingSchedule

UNITS = ("steps", "share")


class MaskingAnnealing(Callback):
    """Sets the masking of each step to levels that are a pure function of the global step.

    There is no state: a resumed run continues with the levels that an uninterrupted one has. Validation keeps the
    masking that the talker was made with, so that its curves compare along the schedule.

    Args:
        talkers: Names of the talkers to mask by the schedule.
        levels: Levels of masking and their places; see :class:`MaskingSchedule`.
        shape: Course between two levels, "linear", "cosine" or "piecewise".
        unit: Unit of ``at``: "share" of the steps of this training, 0 to 1, or "steps".

    Raises:
        UserError: If the schedule is impossible.

    Reference: arXiv 2602.08607, Global Bernoulli masking in stage 2, hierarchical masking in stage 3.
    """

    def __init__(
        self,
        talkers: Sequence[str],
        levels: Sequence[Mapping[str, Any]],
        shape: str = "linear",
        unit: str = "share",
    ) -> None:
        if unit not in UNITS:
            raise UserError(f"masking schedule: there is no unit {unit!r}; choose one of {', '.join(UNITS)}")
        if not talkers:
            raise UserError("masking schedule: it names no talkers; give at least one")
        self.talkers = list(talkers)
        self.schedule = MaskingSchedule(levels, shape)
        self.unit = unit
        last = self.schedule.places[-1]
        if unit == "share" and last > 1:
            raise UserError(f"masking schedule: the last level is at {last:g} of the training; give shares of 0 to 1")

    def levels_at(self, global_step: int, max_steps: float) -> MaskingLevels:
        """Give the levels of one optimizer step out of ``max_steps``."""
        return self.schedule(global_step / max_steps if self.unit == "share" else global_step)

    def check(self, module: LightningModule, max_steps: float) -> None:
        """Refuse a schedule that does not fit a module or the length of its training.

        Args:
            module: The module to train.
            max_steps: Optimizer steps of the training; infinity if it is not known.

        Raises:
            UserError: If a talker is unknown or masks nothing, or the last level lies beyond the end of training.
        """
        find_masked_talkers(module, self.talkers, "masking schedule")
        last = self.schedule.places[-1]
        if self.unit == "steps" and last >= max_steps:
            raise UserError(
                f"masking schedule: the last level is at step {last:g}, but training ends after {max_steps:g} steps; "
                "move it forward or train longer"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule again, now that the number of steps is known."""
        max_steps = trainer.estimated_stepping_batches
        if self.unit == "share" and not math.isfinite(max_steps):
            raise UserError("masking schedule: shares need an end of training; set trainer.max_steps, or count steps")
        self.check(pl_module, max_steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the masking of this step and log its levels."""
        assert isinstance(pl_module, SpeechLLM)
        levels = self.levels_at(trainer.global_step, trainer.estimated_stepping_batches)
        masking = levels.build()
        for name, talker in find_masked_talkers(pl_module, self.talkers, "masking schedule").items():
            talker.masking = masking
            if trainer.global_step % pl_module.log_every_n_steps == 0:
                pl_module.log_scalars(name, levels.as_scalars(), trainer.global_step)

"""Moves the masking of masked-diffusion talkers along a schedule while they train."""

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
        talkers: names of the talkers to mask by the schedule.
        levels: see `MaskingSchedule`.
        shape: "linear", "cosine" or "piecewise".
        unit: what `at` counts: "share" of the steps of this training, 0 to 1, or "steps".

    Raises:
        UserError: if the schedule is impossible; at the start of training if it does not fit the talkers or the steps.

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
            raise UserError("masking schedule: it names no talkers")
        self.talkers = list(talkers)
        self.schedule = MaskingSchedule(levels, shape)
        self.unit = unit
        last = self.schedule.places[-1]
        if unit == "share" and last > 1:
            raise UserError(f"masking schedule: the last level is at {last:g} of the training; give shares of 0 to 1")

    def levels_at(self, global_step: int, max_steps: float) -> MaskingLevels:
        """Gives the levels of one optimiser step out of `max_steps`."""
        return self.schedule(global_step / max_steps if self.unit == "share" else global_step)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what the talkers or the number of steps do not allow."""
        find_masked_talkers(pl_module, self.talkers, "masking schedule")
        max_steps, last = trainer.estimated_stepping_batches, self.schedule.places[-1]
        if self.unit == "share" and max_steps == float("inf"):
            raise UserError("masking schedule: shares need an end of training: set trainer.max_steps, or count steps")
        if self.unit == "steps" and last >= max_steps:
            raise UserError(
                f"masking schedule: the last level is at step {last:g}, but training ends after {max_steps} steps; "
                "move it forward or train longer"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets this step's masking and logs its levels."""
        assert isinstance(pl_module, SpeechLLM)
        levels = self.levels_at(trainer.global_step, trainer.estimated_stepping_batches)
        masking = levels.build()
        for name, talker in find_masked_talkers(pl_module, self.talkers, "masking schedule").items():
            talker.masking = masking
            if trainer.global_step % pl_module.log_every_n_steps == 0:
                pl_module.log_scalars(name, levels.as_scalars(), trainer.global_step)

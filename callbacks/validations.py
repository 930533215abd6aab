"""Which validations belong to a training."""

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn


def is_within_training(trainer: L.Trainer) -> bool:
    """Tell whether a validation measures a training: one before its first step does not, nor does one on its own."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

"""Weights of a training at each of its validations, for whoever asks later when it was at its best."""

import os
from pathlib import Path

import lightning as L

from callbacks.validations import is_within_training

FOLDER = "kept"


class KeptWeights(L.Callback):
    """Writes what trains, without the optimizer, at each validation: ``kept/step_000300.ckpt`` in the trainer's folder.

    A file is written beside its place and then renamed, so that what is there is whole; a training that resumes writes
    those behind its last checkpoint again, with the same content.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the weights of this step; saving is a work of all devices."""
        if not is_within_training(trainer):
            return
        file = Path(trainer.default_root_dir) / FOLDER / f"step_{trainer.global_step:06d}.ckpt"
        partial = file.with_name(f".{file.name}.tmp")
        trainer.save_checkpoint(partial, weights_only=True)
        if trainer.is_global_zero:
            os.replace(partial, file)


def find_kept(run: Path) -> dict[int, Path]:
    """Find the weights that a training has kept.

    Args:
        run: Its directory.

    Returns:
        Files by step, in order.

    Raises:
        FileNotFoundError: If there are none.
    """
    files = {int(file.stem.removeprefix("step_")): file for file in (run / FOLDER).glob("step_*.ckpt")}
    if not files:
        raise FileNotFoundError(f"{run} kept no weights; train it with the callback callbacks.kept_weights.KeptWeights")
    return dict(sorted(files.items()))

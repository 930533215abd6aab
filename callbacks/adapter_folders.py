"""PEFT folders of the LoRA adapter in training, beside each checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L

from lightning_modules.adapted_codec import AdaptedCodec
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM


class AdapterFolders(L.Callback):
    """Writes the adapter that trains as PEFT folders whenever a checkpoint is saved, and keeps the newest ones.

    ``adapters/`` in the trainer's root folder holds one folder per step, ``step_000100/<part>/``, and the newest one
    again as ``adapters/last``, for peft, for decodings and for export.

    Args:
        num_kept: Folders of earlier steps that are kept beside the last one.

    Raises:
        UserError: If the number is negative.
    """

    def __init__(self, num_kept: int = 2) -> None:
        require_at_least(0, num_kept=num_kept)
        self.num_kept = num_kept

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the adapter as it is in this checkpoint."""
        assert isinstance(pl_module, SpeechLLM | AdaptedCodec)
        is_split = isinstance(pl_module, SpeechLLM) and pl_module.is_split
        folder = Path(trainer.default_root_dir) / "adapters"
        step = folder / f"step_{trainer.global_step:06d}"
        partial = folder / f".{step.name}.tmp"
        is_new = trainer.strategy.broadcast(not step.is_dir())
        if is_new and trainer.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        if is_new and (trainer.is_global_zero or is_split):  # split matrices are gathered on all devices
            pl_module.save_adapter(partial)
        if not trainer.is_global_zero:
            return
        if is_new:
            partial.rename(step)  # in one step: what is there is whole
        last = folder / ".last.tmp"
        last.unlink(missing_ok=True)
        last.symlink_to(step.name)
        last.rename(folder / "last")
        earlier = sorted(one for one in folder.glob("step_*") if one != step)
        for one in earlier[: max(0, len(earlier) - self.num_kept)]:
            shutil.rmtree(one)

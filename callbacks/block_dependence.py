"""Logs, at each validation, how far the tokens of a block depend on each other."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.masked_talkers import find_masked_talkers
from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.evaluation.block_dependence import BlockNll, block_nll
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM

SETTING = "block dependence"


class BlockDependence(Callback):
    """Scores gold blocks of the validation set in 1 to as many steps as a block has tokens; see :func:`block_nll`.

    Logs ``val/block_nll/<K>_steps`` and ``val/block_dependence``, one-step minus sequential NLL, which bounds what
    fewer steps lose. It takes a pass for each token of a block.

    Args:
        talkers: Names of talkers that predict masked tokens.
        max_batches: Validation batches that are scored, from the first on, of each device.

    Raises:
        UserError: If no talker is named, or the number is below 1.
    """

    def __init__(self, talkers: Sequence[str], max_batches: int = 4) -> None:
        require_at_least(1, max_batches=max_batches)
        if not talkers:
            raise UserError(f"{SETTING}: it names no talkers; give at least one")
        self.talkers, self.max_batches = list(talkers), max_batches
        self._found: dict[str, BlockNll] = {}

    def check(self, module: LightningModule, max_steps: float) -> None:
        """Refuse talkers that are unknown or mask nothing.

        Args:
            module: The module to train.
            max_steps: Not used.

        Raises:
            UserError: If one is.
        """
        find_masked_talkers(module, self.talkers, SETTING)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SpokenBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a batch."""
        if batch_idx >= self.max_batches or trainer.sanity_checking:
            return
        for name, found in score_batch(pl_module, self.talkers, batch).items():
            self._found[name] = self._found[name] + found if name in self._found else found

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was found on this device."""
        assert isinstance(pl_module, SpeechLLM)
        for name, found in self._found.items():
            pl_module.log_scalars(name, found.as_scalars(), pl_module.global_step)
        self._found = {}


def score_batch(module: LightningModule, names: Sequence[str], batch: SpokenBatch) -> dict[str, BlockNll]:
    """Score the gold blocks of a batch with talkers of a SpeechLLM.

    Args:
        module: In evaluation mode, on the device of the batch.
        names: Names of talkers that predict masked tokens.
        batch: Text states or queries, and speech tokens.

    Returns:
        Nats by talker.

    Raises:
        UserError: If a talker is unknown or masks nothing, or the batch holds no speech tokens.
    """
    assert isinstance(module, SpeechLLM)
    if batch.units is None or batch.unit_lengths is None:
        raise UserError(f"{SETTING} is measured on speech tokens: add units to the data module's fields")
    text = module.read_text(batch)
    talkers = find_masked_talkers(module, names, SETTING)
    return {name: block_nll(talker, text, batch.units, batch.unit_lengths) for name, talker in talkers.items()}

"""Ends the training of talkers side by side when none of them improves any more."""

from typing import Any

import lightning as L

from callbacks.validations import is_within_training
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM

SETTING = "early stopping"


class EarlyStoppingOfAll(L.Callback):
    """Stops when each talker has gone a number of validations without a new best.

    Lightning's ``EarlyStopping`` watches one metric. Talkers that share batches reach their best at steps of their own:
    one that is past it trains on with the others, and its best weights are those that
    :class:`~callbacks.kept_weights.KeptWeights` has of that step.

    Args:
        patience: Validations without a new best.
        tag: What is watched in the TensorBoard run of each talker; the smaller, the better.

    Raises:
        UserError: If the patience is below 1.
    """

    def __init__(self, patience: int = 3, tag: str = "val/nll") -> None:
        require_at_least(1, patience=patience)
        self.patience, self.tag = patience, tag
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at each talker's metric."""
        if not is_within_training(trainer):
            return
        assert isinstance(pl_module, SpeechLLM)
        for name in pl_module.run_names:
            found = trainer.callback_metrics.get(f"{name}/{self.tag}")
            if found is None:
                raise UserError(f"{SETTING}: {name} has no {self.tag}; watch a metric that its validation logs")
            is_best = float(found) < self._best.get(name, float("inf"))
            self._best[name] = float(found) if is_best else self._best.get(name, float("inf"))
            self._waited[name] = 0 if is_best else self._waited.get(name, 0) + 1
        if min(self._waited.values()) >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best of each talker, and how long it has waited since."""
        return {"best": dict(self._best), "waited": dict(self._waited)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._best, self._waited = dict(state_dict["best"]), dict(state_dict["waited"])

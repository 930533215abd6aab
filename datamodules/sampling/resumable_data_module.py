"""What DataModules share whose training resumes where it was stopped."""

from abc import abstractmethod
from typing import Any

import lightning as L
import torch

from datamodules.sampling.epoch_walk import EpochWalk
from datamodules.sampling.evaluation_plan import plan_evaluation
from datamodules.sampling.resumable_loader import EpochDataset, EvaluationLoader, ResumableLoader
from lightning_modules.number_checks import require_at_least
from lightning_modules.token_format import TokenFormat


class ResumableDataModule(L.LightningDataModule):
    """Keeps the place in the training data in each checkpoint, and evaluates in the order of the examples.

    Args:
        eval_batch_size: Validation and test examples on each device.
        num_workers: Processes that load; 0 loads in the main process.

    Attributes:
        num_codes: Size of the codebook that speech tokens must lie in; None if they are not checked.

    Raises:
        UserError: If a number is out of range.
    """

    num_codes: int | None = None

    def __init__(self, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        require_at_least(1, eval_batch_size=eval_batch_size)
        require_at_least(0, num_workers=num_workers)
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self._train_loader: ResumableLoader | None = None
        self._train_state: dict[str, Any] | None = None

    @abstractmethod
    def evaluation_examples(self, split: str) -> tuple[EpochDataset, int] | None:
        """Return the examples of "validation" or "test" and their number, or None if there are none."""

    def token_formats(self) -> dict[str, TokenFormat]:
        """Return what codec wrote the speech tokens, by their folder; folders without a record are left out."""
        return {}

    def val_dataloader(self) -> EvaluationLoader | list:
        """Return the validation batches, in the order of the index; an empty list if there is no such split."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader | list:
        """Return the test batches, in the order of the index; an empty list if there is no such split."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return how far the training data was read; Lightning puts it into each checkpoint."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next `train_dataloader()` resume from a state.

        Lightning restores the state of a loader by itself only when it stopped inside an epoch.

        Args:
            state_dict: What `state_dict()` returned.
        """
        self._train_state = state_dict.get("train")

    def _load_training(self, dataset: EpochDataset, walk: EpochWalk) -> ResumableLoader:
        """Make the loader of this process, which resumes from a state that was loaded."""
        loader = ResumableLoader(dataset, walk, self._place()[0], self.num_workers, torch.cuda.is_available())
        if self._train_state is not None:
            loader.load_state_dict(self._train_state)
            self._train_state = None
        self._train_loader = loader
        return loader

    def _evaluation_loader(self, split: str) -> EvaluationLoader | list:
        found = self.evaluation_examples(split)
        if found is None:
            return []
        examples, count = found
        batches = plan_evaluation(count, self.eval_batch_size, *self._place())
        return EvaluationLoader(examples, batches, self.num_workers, torch.cuda.is_available())

    def _place(self) -> tuple[int, int]:
        """Return this process among those that train together: (rank, world size)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

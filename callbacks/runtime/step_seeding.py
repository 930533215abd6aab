"""Random numbers that are a function of seed, step and device."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.training.seeding import derive_seed


class StepSeeding(Callback):
    """Seeds the global generators of Python, NumPy and PyTorch (of all devices) at each training batch.

    A training that is resumed, on as many devices or on others, then draws in each step what it would have drawn: no
    state of a generator needs to be saved, and dropout differs between the devices of one training.

    Args:
        seed: Seed of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators for this batch."""
        seed = derive_seed(self.seed, "step", trainer.global_step, batch_idx, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

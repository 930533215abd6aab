"""Random noise, speed and rooms for spoken queries, from a library of such transforms."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from audiomentations.core.transforms_interface import BaseWaveformTransform
from torch import Tensor

from datamodules.batch import SAMPLE_RATE_HZ
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least


class QueryAugmentation:
    """Applies transforms in turn; what they draw is a function of seed, epoch and example alone.

    Args:
        transforms: Of the library `audiomentations`, each with its probability; for instance `AddGaussianSNR`,
            `TimeStretch` (with `leave_length_unchanged=False`), `RoomSimulator` (with `use_ray_tracing=False`).
        seed: Seeds what they draw.

    Raises:
        UserError: If there is no transform, one draws from a source that cannot be seeded, or the seed is negative.
    """

    def __init__(self, transforms: Sequence[BaseWaveformTransform], seed: int = 0) -> None:
        require_at_least(0, seed=seed)
        if not transforms:
            raise UserError("no transform is given: name at least one, or leave query_augmentation out")
        for transform in transforms:
            if getattr(transform, "use_ray_tracing", False):
                raise UserError(
                    f"{type(transform).__name__} traces rays at random, so a resumed run would hear other rooms; set "
                    "use_ray_tracing to false"
                )
        self.transforms, self.seed = list(transforms), seed

    def __call__(self, query: Tensor, epoch: int, example: int) -> Tensor:
        """Change a query.

        Args:
            query: ``(S,) float32`` at 16 kHz.
            epoch: From 0.
            example: Its number in the corpus.

        Returns:
            ``(S',) float32``.
        """
        samples = query.numpy()
        with _seeded([self.seed, epoch, example]):
            for transform in self.transforms:
                samples = transform(samples, sample_rate=SAMPLE_RATE_HZ)
        return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


@contextmanager
def _seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Seed the global generators that the library draws from, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

"""Loaders of planned batches; the one for training resumes in the middle of an epoch."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch, SpokenExample, collate
from datamodules.sampling.epoch_walk import EpochWalk


class EpochDataset(Protocol):
    """Examples that may differ from epoch to epoch, by augmentation."""

    def __getitem__(self, key: tuple[int, int]) -> SpokenExample:
        """Return the example for (epoch, index), a pure function of both."""


class EvaluationLoader:
    """Loads the same batches each time it is iterated.

    Args:
        dataset: Gives the example of an (epoch, index) pair; the epoch is always 0.
        batches: Lists of indices.
        num_workers: Processes that load; 0 loads in this process.
        pin_memory: Return batches in page-locked memory.
    """

    def __init__(
        self, dataset: EpochDataset, batches: list[list[int]], num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._dataset = dataset
        self._keys = [[(0, index) for index in batch] for batch in batches]
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._keys)

    def __iter__(self) -> Iterator[SpokenBatch]:
        """Load all batches in order."""
        return iter(_load(self._dataset, self._keys, self._num_workers, self._pin_memory))


class ResumableLoader:
    """Loads the batches of a walk, epoch after epoch, and knows how far it has come.

    Each iteration gives as many batches as the first epoch has, beginning with the first that was not handed out yet;
    the first iteration after `load_state_dict` gives what the interrupted one had left. Lightning saves `state_dict()`
    with each checkpoint of a fit. Batches that workers loaded ahead do not count until they are handed out: the batches
    before a checkpoint and those after it are together the batches of an uninterrupted run.

    Args:
        dataset: Gives the example of an (epoch, index) pair.
        walk: Which batches come next.
        rank: This process.
        num_workers: Processes that load; 0 loads in this process.
        pin_memory: Return batches in page-locked memory.
    """

    def __init__(
        self, dataset: EpochDataset, walk: EpochWalk, rank: int = 0, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._dataset, self._walk, self._rank = dataset, walk, rank
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._num_batches = walk.steps_of_epoch
        self._in_iteration = 0
        self._is_loaded = False

    def __len__(self) -> int:
        """Return the number of batches in an iteration, wherever this loader stands in it."""
        return self._num_batches

    def __iter__(self) -> Iterator[SpokenBatch]:
        """Load the batches that follow those that were handed out."""
        if not self._is_loaded or self._in_iteration >= self._num_batches:
            self._in_iteration = 0
        return self._batches()

    def state_dict(self) -> dict[str, Any]:
        """Return where the walk stands, and how many batches the latest iteration has handed out."""
        return {"walk": self._walk.state_dict(), "in_iteration": self._in_iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where another loader of the same plan stood.

        Args:
            state_dict: What its `state_dict()` returned.

        Raises:
            UserError: If it followed another plan.
        """
        self._walk.load_state_dict(state_dict["walk"])
        self._in_iteration = state_dict["in_iteration"]
        self._is_loaded = True

    def _batches(self) -> Iterator[SpokenBatch]:
        # Runs from the first `next` on: Lightning may make an iterator that it does not use.
        self._is_loaded = False
        to_come = itertools.islice(self._walk.batches(self._rank), self._num_batches - self._in_iteration)
        keys = ([(epoch, int(index)) for index in batch] for epoch, batch in to_come)
        for batch in _load(self._dataset, keys, self._num_workers, self._pin_memory):
            self._walk.advance()
            self._in_iteration += 1
            yield batch


def _load(
    dataset: EpochDataset, keys: Iterable[list[tuple[int, int]]], num_workers: int, pin_memory: bool
) -> Iterable[SpokenBatch]:
    # Its own generator: the default one would draw from the global random state, and resuming would change the run.
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=keys,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )

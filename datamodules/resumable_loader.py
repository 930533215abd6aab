"""Loaders of planned batches; the one for training goes on in the middle of an epoch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch, SpokenExample, collate


class EpochDataset(Protocol):
    """Examples that may differ from epoch to epoch, by augmentation."""

    def __getitem__(self, key: tuple[int, int]) -> SpokenExample:
        """The example for (epoch, index), a pure function of both."""


class EvaluationLoader:
    """Loads the same batches, from the first on, each time it is iterated.

    Args:
        dataset: gives the example of an (epoch, index) pair; the epoch is always 0.
        batches: lists of indices.
        num_workers: processes that load; 0 loads in this process.
        pin_memory: whether batches come in page-locked memory.
    """

    def __init__(
        self, dataset: EpochDataset, batches: list[list[int]], num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._dataset = dataset
        self._keys = [[(0, index) for index in batch] for batch in batches]
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._keys)

    def __iter__(self) -> Iterator[SpokenBatch]:
        """Gives all batches in order."""
        return iter(_load(self._dataset, self._keys, self._num_workers, self._pin_memory))


class ResumableLoader:
    """Loads the batches of a plan, epoch after epoch, and knows how far it came.

    Each iteration gives as many batches as an epoch has, beginning with the first that was not handed out yet; the
    first iteration after `load_state_dict` gives what the interrupted one had left. Lightning saves `state_dict()` with
    each checkpoint of a fit. What counts is what was handed out, not what workers loaded ahead, so that the batches
    before a checkpoint and those after it are together the batches of an uninterrupted run.

    Args:
        dataset: gives the example of an (epoch, index) pair.
        plan: the batches of an epoch as lists of indices; as many in every epoch.
        identity: what the plan depends on (such as seed and batch size); a state of another plan is refused.
        num_workers: processes that load; 0 loads in this process.
        pin_memory: whether batches come in page-locked memory.
    """

    def __init__(
        self,
        dataset: EpochDataset,
        plan: Callable[[int], list[list[int]]],
        identity: dict[str, int],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self._plan = plan
        self._identity = dict(identity)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._num_batches = len(plan(0))
        self._handed_out = 0
        self._in_iteration = 0
        self._is_loaded = False

    def __len__(self) -> int:
        """Batches in an epoch, wherever this loader stands in it."""
        return self._num_batches

    def __iter__(self) -> Iterator[SpokenBatch]:
        """Gives the batches that follow those that were handed out."""
        if not self._is_loaded or self._in_iteration >= self._num_batches:
            self._in_iteration = 0
        return self._batches()

    def state_dict(self) -> dict[str, Any]:
        """How many batches were handed out, in all and by the latest iteration."""
        return {"handed_out": self._handed_out, "in_iteration": self._in_iteration, "plan": dict(self._identity)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to where another loader of the same plan stood.

        Args:
            state_dict: what its `state_dict()` returned.

        Raises:
            ValueError: if it followed another plan.
        """
        saved = state_dict["plan"]
        changed = sorted(
            key for key in saved.keys() | self._identity.keys() if saved.get(key) != self._identity.get(key)
        )
        if changed:
            differences = ", ".join(f"{key} was {saved.get(key)} and is {self._identity.get(key)}" for key in changed)
            raise ValueError(
                f"the checkpoint's place in the data does not fit this loader: {differences}; "
                "set these as they were, or start a new run"
            )
        self._handed_out = state_dict["handed_out"]
        self._in_iteration = state_dict["in_iteration"]
        self._is_loaded = True

    def _batches(self) -> Iterator[SpokenBatch]:
        # Runs from the first `next` on: Lightning may make an iterator that it does not use.
        self._is_loaded = False
        keys = self._keys(self._handed_out, self._num_batches - self._in_iteration)
        for batch in _load(self._dataset, keys, self._num_workers, self._pin_memory):
            self._handed_out += 1
            self._in_iteration += 1
            yield batch

    def _keys(self, first: int, count: int) -> list[list[tuple[int, int]]]:
        """The (epoch, index) pairs of `count` batches, counted from the first batch of the first epoch."""
        epochs = range(first // self._num_batches, (first + count - 1) // self._num_batches + 1)
        batches = [[(epoch, index) for index in batch] for epoch in epochs for batch in self._plan(epoch)]
        start = first % self._num_batches
        return batches[start : start + count]


def _load(
    dataset: EpochDataset, keys: list[list[tuple[int, int]]], num_workers: int, pin_memory: bool
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

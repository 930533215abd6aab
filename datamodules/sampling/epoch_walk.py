"""A walk through the epochs of a corpus that resumes wherever it was left, on any number of devices.

Within an epoch, the walk is a list of *stretches*, each with a number of devices of its own. A stretch plans what the
stretches before it left over, so each example of an epoch is handed out once, whatever the numbers of devices were.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datamodules.sampling.epoch_plan import BatchBudget, Steps, draw_epoch, plan_steps
from lightning_modules.errors import UserError


class EpochWalk:
    """Knows which batches come next on every rank.

    Args:
        set_of: Set that each example belongs to, ``(N,) int``.
        lengths: Tokens of each example, ``(N,) int``.
        weights: How often an epoch takes each set; see :func:`draw_epoch`.
        budget: How much a batch may hold.
        seed: Seeds the shuffling.
        world_size: Devices.
        second_lengths: Another length of each example, ``(N,) float``; see :func:`plan_steps`.

    Raises:
        UserError: If no plan can be made; see :func:`plan_steps`.
    """

    def __init__(
        self,
        set_of: np.ndarray,
        lengths: np.ndarray,
        weights: Sequence[float],
        budget: BatchBudget,
        seed: int,
        world_size: int,
        second_lengths: np.ndarray | None = None,
    ) -> None:
        self._second_lengths = second_lengths
        self._set_of, self._lengths, self._weights = set_of, lengths, tuple(weights)
        self._budget, self._seed, self.world_size = budget, seed, world_size
        self.epoch = self.position = 0
        self._past: list[tuple[int, int]] = []
        self._steps = self._plan(0, [])

    @property
    def steps_of_epoch(self) -> int:
        """Steps of the stretch of the epoch that the walk is in."""
        return len(self._steps)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the walk depends on, but for the number of devices."""
        digest = hashlib.sha256()
        for values in (self._set_of, self._lengths):
            digest.update(np.ascontiguousarray(values, dtype=np.int64))
        if self._second_lengths is not None:
            digest.update(np.ascontiguousarray(self._second_lengths, dtype=np.float64))
        return {
            "corpus": digest.hexdigest()[:16],
            "num_examples": len(self._lengths),
            "weights": list(self._weights),
            "max_tokens": self._budget.max_tokens,
            "max_examples": self._budget.max_examples,
            "seed": self._seed,
        }

    def advance(self) -> None:
        """Take one step: its batches were handed out."""
        self.position += 1
        self._leave_finished_epoch()

    def batches(self, rank: int) -> Iterator[tuple[int, np.ndarray]]:
        """Give the epoch and the examples of each batch to come on one rank, without end; does not advance."""
        steps, position = self._steps, self.position
        for epoch in itertools.count(self.epoch):
            for step in range(position, len(steps)):
                yield epoch, steps.batch(step, rank)
            steps, position = self._plan(epoch + 1, []), 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the walk stands."""
        return {
            "epoch": self.epoch,
            "stretches": [*map(list, self._past), [self.world_size, self.position]],
            "identity": self.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another walk stood; the rest of its epoch is planned again if the number of devices is another.

        Args:
            state: What its `state_dict()` returned.

        Raises:
            UserError: If it walked through another corpus, or in another way.
        """
        _refuse_other_plan(state["identity"], self.identity)
        past = [(int(world_size), int(steps)) for world_size, steps in state["stretches"]]
        self.epoch = int(state["epoch"])
        if past[-1][0] == self.world_size:
            self._past, self.position = past[:-1], past[-1][1]
        else:
            self._past, self.position = [one for one in past if one[1]], 0
        self._steps = self._plan(self.epoch, self._past)
        self._leave_finished_epoch()

    def _leave_finished_epoch(self) -> None:
        if self.position == len(self._steps):
            self.epoch, self.position, self._past = self.epoch + 1, 0, []
            self._steps = self._plan(self.epoch, [])

    def _plan(self, epoch: int, past: Sequence[tuple[int, int]]) -> Steps:
        rest = draw_epoch(self._set_of, self._weights, self._seed, epoch)
        for number, (world_size, taken) in enumerate(past):
            steps = self._plan_stretch(rest, world_size, epoch, number)
            rest = np.concatenate([steps.examples_from(taken), steps.left_out])
        return self._plan_stretch(rest, self.world_size, epoch, len(past))

    def _plan_stretch(self, examples: np.ndarray, world_size: int, epoch: int, number: int) -> Steps:
        if number and len(examples) < world_size:  # too few are left for one per device
            return Steps(examples[:0], np.zeros(1, dtype=np.int64), world_size, examples)
        seed = [self._seed, 3, epoch, number]
        return plan_steps(examples, self._lengths, self._budget, world_size, seed, self._second_lengths)


def _refuse_other_plan(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise UserError with what differs, if anything does."""
    changed = sorted(name for name in saved.keys() | present.keys() if saved.get(name) != present.get(name))
    if changed:
        differences = ", ".join(f"{name} was {saved.get(name)} and is {present.get(name)}" for name in changed)
        raise UserError(
            f"the checkpoint's place in the data does not fit this run: {differences}; "
            "set these as they were, or start a new run"
        )

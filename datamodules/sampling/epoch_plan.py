"""Which examples form which batch of which rank: pure functions of metadata, seed and epoch.

An epoch is a sequence of *steps*; a step holds one batch for each rank. Batches are filled up to a budget, of padded
tokens or of examples, from examples of similar length, so that few positions are padding; which examples meet, and the
order of the steps, change with every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

# Sorting by length happens inside pools of this many budgets: long enough to save padding, short enough to stay random.
POOL_BUDGETS = 4096
# Without a budget of tokens, the random choice of the pools alone decides which examples meet; so they hold few steps.
POOL_STEPS = 32
# Examples whose lengths differ by less than these shares count as equally long: their order is random.
TOLERANCE, SECOND_TOLERANCE = 0.06, 0.03


@dataclass(frozen=True)
class BatchBudget:
    """How much a batch may hold.

    Attributes:
        max_tokens: Padded tokens, the longest example's times their number; not limited if None.
        max_examples: Examples. Without a limit of tokens a batch holds as many, but for the last of a pool and where
            ranks would get unequal numbers of batches.

    Raises:
        UserError: If a number is out of range.
    """

    max_tokens: int | None
    max_examples: int = 512

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, max_tokens=self.max_tokens, max_examples=self.max_examples)


@dataclass(frozen=True)
class Steps:
    """Batches of a stretch of training: steps of one batch per rank.

    Attributes:
        members: Examples, batch after batch, step after step, ``(n,) int64``.
        bounds: Where each batch begins and the last one ends in ``members``, ``(num_steps * world_size + 1,) int64``.
        world_size: Ranks.
        left_out: Examples that would have given some ranks one more batch, fewer than ``world_size`` in each pool and
            only where no batch has room for two examples, ``(m,) int64``.
    """

    members: np.ndarray
    bounds: np.ndarray
    world_size: int
    left_out: np.ndarray

    def __len__(self) -> int:
        """Return the number of steps."""
        return (len(self.bounds) - 1) // self.world_size

    def batch(self, step: int, rank: int) -> np.ndarray:
        """Return the examples of one rank in one step, ``(m,) int64``."""
        index = step * self.world_size + rank
        return self.members[self.bounds[index] : self.bounds[index + 1]]

    def examples_from(self, step: int) -> np.ndarray:
        """Return the examples of a step and all after it, ``(m,) int64``."""
        return self.members[self.bounds[step * self.world_size] :]


def draw_epoch(set_of: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Draw the examples of an epoch, each set as often as its weight says.

    A weight of 1 takes each example of a set once, 2 twice, 0 never; 0.25 takes a quarter of the set, a different one
    in each epoch, so that four epochs take the whole set.

    Args:
        set_of: Set that each example belongs to, ``(N,) int``.
        weights: One per set.
        seed: Seeds the shuffling.
        epoch: From 0.

    Returns:
        Examples in random order, ``(n,) int64``.

    Raises:
        UserError: If a weight is negative, or nothing is drawn.
    """
    parts = []
    for number, weight in enumerate(weights):
        if weight < 0 or not np.isfinite(weight):
            raise UserError(f"set {number} has the weight {weight}: give 0 or more")
        own = np.flatnonzero(set_of == number)
        # The set is shuffled round after round; each epoch takes the stretch that follows the one before.
        begin, end = (round(len(own) * weight * edge) for edge in (epoch, epoch + 1))
        rounds = range(begin // len(own), -(-end // len(own))) if len(own) else range(0)
        for turn in rounds:
            order = np.random.default_rng([seed, 1, number, turn]).permutation(own)
            parts.append(order[max(0, begin - turn * len(own)) : end - turn * len(own)])
    drawn = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if len(drawn) == 0:
        raise UserError(f"no example is drawn with the weights {list(weights)}: raise one of a set that holds any")
    return np.random.default_rng([seed, 2, epoch]).permutation(drawn)


def plan_steps(
    examples: np.ndarray,
    lengths: np.ndarray,
    budget: BatchBudget,
    world_size: int,
    seed: Sequence[int],
    second_lengths: np.ndarray | None = None,
) -> Steps:
    """Pack examples into batches and batches into steps; every example is in exactly one batch.

    Args:
        examples: In random order, ``(n,) int64``.
        lengths: Tokens of every example of the corpus, ``(N,) int``.
        budget: How much a batch may hold.
        world_size: Ranks; each has a batch in every step.
        seed: Seeds the order of the steps, and which examples of similar length meet.
        second_lengths: Another length that is padded but does not count in the budget, such as that of the query,
            ``(N,)``; of examples with about as many tokens, those meet that are similar in it, too.

    Returns:
        The steps; batches of one step are of similar length.

    Raises:
        UserError: If there are fewer examples than ranks, or one is longer than the budget.
    """
    if len(examples) < world_size:
        raise UserError(f"{len(examples)} examples do not give each of {world_size} devices one: use fewer devices")
    longest = int(lengths[examples].max())
    if budget.max_tokens is not None and longest > budget.max_tokens:
        raise UserError(f"an example has {longest} tokens, but a batch holds {budget.max_tokens}: raise the budget")
    ordered: list[np.ndarray] = []
    left_out: list[np.ndarray] = []
    sizes: list[int] = []
    generator = np.random.default_rng(list(seed))
    for pool in _pools(examples, lengths, budget, world_size):
        order = _sorted(pool, lengths, second_lengths, budget, generator)
        own_sizes = _split_to_multiple(_cut(lengths[order], budget), world_size)
        taken, rest = np.split(order, [sum(own_sizes)])
        ordered.append(taken)
        left_out.append(rest)
        sizes += own_sizes
    members, bounds = np.concatenate(ordered), np.concatenate([[0], np.cumsum(sizes)])
    order_of_steps = generator.permutation(len(sizes) // world_size)
    batches = (order_of_steps[:, None] * world_size + np.arange(world_size)).ravel()
    lengths_of = np.diff(bounds)[batches]
    new_bounds = np.concatenate([[0], np.cumsum(lengths_of)])
    # Where each member was before: the old begin of its batch plus its place in the batch.
    source = np.repeat(bounds[batches] - new_bounds[:-1], lengths_of) + np.arange(new_bounds[-1])
    return Steps(members[source], new_bounds, world_size, np.concatenate(left_out))


def _pools(examples: np.ndarray, lengths: np.ndarray, budget: BatchBudget, world_size: int) -> list[np.ndarray]:
    """Cut examples into pools of about as many budgets; none is too small to give each rank an example."""
    if budget.max_tokens is None:
        filled = np.arange(len(examples)) // (budget.max_examples * world_size * POOL_STEPS)
    else:
        filled = np.cumsum(lengths[examples]) // (budget.max_tokens * POOL_BUDGETS)
    pools = np.split(examples, np.flatnonzero(np.diff(filled)) + 1)
    merged = [pools[0]]
    for pool in pools[1:]:
        if min(len(pool), len(merged[-1])) < world_size:
            merged[-1] = np.concatenate([merged[-1], pool])
        else:
            merged.append(pool)
    return merged


def _sorted(
    pool: np.ndarray,
    lengths: np.ndarray,
    second_lengths: np.ndarray | None,
    budget: BatchBudget,
    generator: np.random.Generator,
) -> np.ndarray:
    """Sort a pool so that neighbours are similar in length, and in the second length if there is one."""
    classes = lengths[pool] if budget.max_tokens is None else _classes(lengths[pool], TOLERANCE, generator)
    if second_lengths is None:
        return pool[np.argsort(classes, kind="stable")]
    second = _classes(second_lengths[pool], SECOND_TOLERANCE, generator)
    back_and_forth = np.where(classes % 2, -1, 1)  # the last of a class and the first of the next may share a batch
    return pool[np.lexsort((second * back_and_forth, classes))]


def _classes(lengths: np.ndarray, tolerance: float, generator: np.random.Generator) -> np.ndarray:
    """Assign lengths to classes with bounds shifted at random for each, so that other examples meet in each epoch."""
    shift = generator.uniform(0.0, 0.5, len(lengths))
    return np.floor(np.log(np.maximum(lengths, 1e-3)) / np.log1p(tolerance) + shift)


def _cut(lengths: np.ndarray, budget: BatchBudget) -> list[int]:
    """Cut a sequence of lengths into batches as large as the budget allows; return their sizes."""
    sizes, size, longest = [], 0, 0
    for length in lengths.tolist():
        longest = max(longest, length)
        is_full = budget.max_tokens is not None and (size + 1) * longest > budget.max_tokens
        if size == budget.max_examples or is_full:
            sizes.append(size)
            size, longest = 0, length
        size += 1
    return [*sizes, size]


def _split_to_multiple(sizes: list[int], world_size: int) -> list[int]:
    """Halve the batches with most examples until every rank gets the same number of batches.

    Where every batch has one example only, surplus batches are dropped from the end.
    """
    sizes = list(sizes)
    while len(sizes) % world_size:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        if sizes[largest] == 1:
            return sizes[: len(sizes) // world_size * world_size]
        half = sizes[largest] // 2
        sizes[largest : largest + 1] = [half, sizes[largest] - half]
    return sizes

"""Which examples form which batch: pure functions of lengths, seed and epoch."""

import math

import numpy as np

from lightning_modules.errors import UserError

# Sorting by length happens inside pools of this many batches: long enough to save padding, short enough to stay random.
_POOL_BATCHES = 32


def plan_training(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """Plan shuffled batches of similar length, all of `batch_size`.

    Every rank gets the same number of batches; shards of one epoch are disjoint. What does not fill a last batch on
    every rank is left out, other examples each epoch; a corpus smaller than one batch gives one smaller batch.

    Args:
        lengths: What to sort by, ``(N,) int``.
        batch_size: Examples in a batch of one rank.
        seed: Seeds the shuffling.
        epoch: Each is shuffled differently.
        rank: This process.
        world_size: How many processes train together.

    Returns:
        The batches of this rank, as lists of indices into `lengths`.

    Raises:
        UserError: If there are fewer examples than ranks.
    """
    count = len(lengths)
    group_size = min(batch_size, count // world_size) * world_size
    if group_size == 0:
        raise UserError(f"{count} examples are too few for {world_size} devices; use fewer devices or more examples")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(count)[: count // group_size * group_size]
    pools = [order[i : i + group_size * _POOL_BATCHES] for i in range(0, len(order), group_size * _POOL_BATCHES)]
    by_length = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    groups = by_length.reshape(-1, group_size)
    # Strides give every rank the same spread of lengths inside a group.
    return [group[rank::world_size].tolist() for group in generator.permutation(groups, axis=0)]


def plan_evaluation(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Plan batches in the order of the corpus, every example once, the same number of batches on every rank.

    Args:
        count: How many examples there are.
        batch_size: The most examples in a batch.
        rank: This process.
        world_size: How many processes evaluate together.

    Returns:
        The batches of this rank, as lists of indices below `count`.

    Raises:
        UserError: If there are fewer examples than ranks.
    """
    if count < world_size:
        raise UserError(f"{count} examples are too few for {world_size} devices; use fewer devices or more examples")
    num_batches = math.ceil(math.ceil(count / world_size) / batch_size)
    own = range(rank, count, world_size)
    if len(own) < num_batches:
        raise UserError(
            f"{count} examples give {world_size} devices unequal numbers of batches of {batch_size}; use a larger batch"
        )
    if world_size == 1:
        return [list(own[start : start + batch_size]) for start in range(0, count, batch_size)]
    return [part.tolist() for part in np.array_split(np.array(own), num_batches)]

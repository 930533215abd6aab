"""Which examples form which batch of an evaluation: a pure function of their number."""

import math

import numpy as np

from lightning_modules.errors import UserError


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

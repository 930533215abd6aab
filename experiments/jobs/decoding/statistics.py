"""What is made of repeated timings: medians with percentiles, ratios pair by pair with intervals, order of turns."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from lightning_modules.evaluation.bootstrap import NUM_RESAMPLES, interval_of

_T = TypeVar("_T")


class Spread(NamedTuple):
    """A median with the 10th and 90th percentile."""

    median: float
    low: float
    high: float


class Ratio(NamedTuple):
    """The median of ratios pair by pair, with the ends of its 95 % interval."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Give the median of values, at least one, with the 10th and 90th percentile."""
    low, median, high = np.percentile(values, [10, 50, 90])
    return Spread(float(median), float(low), float(high))


def paired_ratio(values: Sequence[float], others: Sequence[float], seed: int = 0) -> Ratio:
    """Divide what was measured by what was measured beside it, round by round.

    Args:
        values: One value per round.
        others: The values of the same rounds.
        seed: Of the resampling.

    Returns:
        The median of the ratios. Its interval holds 95 % of the medians of as many ratios drawn with replacement.

    Raises:
        ValueError: If the rounds are not the same.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} rounds beside {len(others)}: ratios need pairs")
    ratios = np.asarray(values) / np.asarray(others)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(NUM_RESAMPLES, len(ratios)))
    low, high = interval_of(np.median(ratios[drawn], axis=1))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def count_equal(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Count the places at which two replies have the same token; behind the end of either there is none."""
    return sum(one == its for one, its in zip(tokens, others, strict=False))


def order_of_turn(names: Sequence[_T], turn: int) -> list[_T]:
    """Give the order of one round, from 0.

    Each second round is the one before it backwards, so that of two names each comes first as often, however the
    machine's speed drifts; every two rounds another name begins.
    """
    first = turn // 2 % len(names)
    order = [*names[first:], *names[:first]]
    return order if turn % 2 == 0 else order[::-1]

"""Word error rates over several seeds, and their differences, with intervals over seeds and dialogues."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import Estimate, divide, draw_counts, estimate_from

# A difference is seen with 80 % power if it is 1.96 + 0.84 standard errors; an interval is 2 * 1.96 of them wide.
_SHARE_OF_WIDTH = (1.96 + 0.84) / (2 * 1.96)


@dataclass(frozen=True)
class SeedErrors:
    """The word errors of one system of one seed.

    Attributes:
        dialogues: What was asked, one name per dialogue.
        errors: Word errors of each reply, ``(N,) int64``.
        words: Words of each, ``(N,) int64``.
    """

    dialogues: tuple[str, ...]
    errors: np.ndarray
    words: np.ndarray


def estimate_over_seeds(seeds: Sequence[SeedErrors]) -> Estimate:
    """Estimate the word error rate of a system that was trained with several seeds.

    Seeds are drawn, and dialogues: the same ones for all seeds if all answered the same, else each seed's own. With few
    seeds it is optimistic: the spread between ``S`` of them is drawn too small by ``sqrt((S - 1) / S)``. One seed says
    nothing about others.

    Reference: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).

    Args:
        seeds: At least one.

    Returns:
        The rate of all words, and its interval.

    Raises:
        UserError: If there is no seed.
    """
    return estimate_from(*_rates(seeds, _draw(seeds)))


def difference_over_seeds(first: Sequence[SeedErrors], second: Sequence[SeedErrors]) -> Estimate:
    """Estimate how many errors per word a second system has more than a first; both draw the same seeds and dialogues.

    Args:
        first: The errors of the first system, by seed.
        second: Those of the second, of the same seeds and dialogues.

    Returns:
        The difference, above 0 where the second is worse, and its interval.

    Raises:
        UserError: If the two did not answer the same dialogues.
    """
    if [one.dialogues for one in first] != [one.dialogues for one in second]:
        raise UserError("the two systems have other seeds or answered other dialogues; compare what is alike")
    draws = _draw(first)
    (before, of_first), (after, of_second) = _rates(first, draws), _rates(second, draws)
    return estimate_from(after - before, of_second - of_first)


def smallest_shown(difference: Estimate) -> float:
    """Give the smallest difference that as many seeds and dialogues show in four of five repetitions."""
    return _SHARE_OF_WIDTH * (difference.high - difference.low)


def _draw(seeds: Sequence[SeedErrors]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw seeds, ``(R, S)``, and the dialogues of each, ``(R, N)``."""
    if not seeds:
        raise UserError("there is no seed: an interval needs at least one")
    shared = len({one.dialogues for one in seeds}) == 1
    # Number 1 is that of the draw of seeds.
    numbers = [0 if shared else 2 + index for index in range(len(seeds))]
    drawn = {number: draw_counts(len(one.dialogues), number) for number, one in zip(numbers, seeds, strict=True)}
    return draw_counts(len(seeds), seed=1), [drawn[number] for number in numbers]


def _rates(seeds: Sequence[SeedErrors], draws: tuple[np.ndarray, list[np.ndarray]]) -> tuple[float, np.ndarray]:
    """Give the rate of all, and those of each draw, ``(R,)``."""
    drawn_seeds, drawn_dialogues = draws

    def resampled(of_each: Sequence[np.ndarray]) -> np.ndarray:
        sums = [counts @ own for counts, own in zip(drawn_dialogues, of_each, strict=True)]
        return np.sum(drawn_seeds.T * np.stack(sums), axis=0)

    errors, words = [one.errors for one in seeds], [one.words for one in seeds]
    value = divide(np.concatenate(errors).sum(), np.concatenate(words).sum())
    return float(value), divide(resampled(errors), resampled(words))

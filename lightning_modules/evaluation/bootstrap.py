"""Bootstrap intervals of rates over dialogues, for many rates at once."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lightning_modules.errors import UserError

NUM_RESAMPLES = 2000
QUANTILES = 0.025, 0.975


@dataclass(frozen=True)
class Estimate:
    """A rate, or a difference of two, with its 95 % interval.

    Attributes:
        value: That of all that was measured.
        low: Lower bound.
        high: Upper bound.
    """

    value: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval holds 0: no effect is shown."""
        return self.low <= 0.0 <= self.high

    def in_percent(self, digits: int = 1, sign: bool = False) -> str:
        """Write it as ``11.3 (9.9 to 12.8)``, in percent or in points; a sign before each number if asked for."""
        pattern = f"{{:{'+' if sign else ''}.{digits}f}}"
        value, low, high = (pattern.format(100 * number + 0.0) for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


@lru_cache(maxsize=2)
def draw_counts(num_items: int, seed: int = 0) -> np.ndarray:
    """Draw items with replacement, as many as there are, and count how often each is drawn.

    One draw serves every system that answered these items, so that their differences are paired. It takes longer than
    what is made of it, so the last two draws, often one of seeds and one of dialogues, are kept.

    Args:
        num_items: Dialogues, or seeds; at least one.
        seed: Of the draw.

    Returns:
        ``(NUM_RESAMPLES, num_items) float64``, read-only; each row adds up to ``num_items``.

    Raises:
        UserError: If there is no item.
    """
    if num_items < 1:
        raise UserError("there is nothing to draw from: an interval needs at least one item")
    drawn = np.random.default_rng(seed).integers(num_items, size=(NUM_RESAMPLES, num_items))
    offsets = num_items * np.arange(NUM_RESAMPLES)[:, None]
    counts = np.bincount((drawn + offsets).ravel(), minlength=NUM_RESAMPLES * num_items)
    found = counts.reshape(NUM_RESAMPLES, num_items).astype(np.float64)
    found.setflags(write=False)
    return found


def divide(num_errors: np.ndarray, num_words: np.ndarray) -> np.ndarray:
    """Give errors per word; without any word it is 1 if there is an error, and 0 if not."""
    return np.where(num_words > 0, num_errors / np.maximum(num_words, 1), num_errors > 0)


def resample_rates(errors: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give the rates of each draw of dialogues.

    Args:
        errors: Of each dialogue, in any number of groups, ``(N,)`` or ``(N, G)``.
        words: The same shape.
        counts: From :func:`draw_counts`, ``(R, N)``.

    Returns:
        ``(R,)`` or ``(R, G) float64``.
    """
    return divide(counts @ errors, counts @ words)


def interval_of(resamples: np.ndarray) -> np.ndarray:
    """Give the bounds of the 95 % interval of resamples ``(R, ...)``, as ``(2, ...)``."""
    return np.quantile(resamples, QUANTILES, axis=0)


def estimate_from(value: np.ndarray | float, resamples: np.ndarray) -> Estimate:
    """Put a value together with the interval of its resamples ``(R,)``."""
    low, high = interval_of(resamples)
    return Estimate(float(value), float(low), float(high))


def estimate_rate(errors: np.ndarray, words: np.ndarray) -> Estimate:
    """Estimate errors per word.

    Args:
        errors: Of each dialogue, ``(N,)``.
        words: The same shape.

    Returns:
        The rate of all words, and its interval over dialogues.
    """
    return estimate_from(divide(errors.sum(), words.sum()), resample_rates(errors, words, draw_counts(len(errors))))


def estimate_difference(errors: np.ndarray, words: np.ndarray, others: np.ndarray, other_words: np.ndarray) -> Estimate:
    """Estimate how many errors per word a second system has more than a first, on the same dialogues.

    The dialogues that are drawn are the same for both, so what makes one hard for both drops out.

    Args:
        errors: Of the first, ``(N,)``.
        words: The same shape.
        others: Errors of the second, the same shape.
        other_words: Its words, the same shape.

    Returns:
        The difference, above 0 where the second is worse, and its interval.
    """
    counts = draw_counts(len(errors))
    value = divide(others.sum(), other_words.sum()) - divide(errors.sum(), words.sum())
    return estimate_from(value, resample_rates(others, other_words, counts) - resample_rates(errors, words, counts))

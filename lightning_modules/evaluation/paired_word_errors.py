"""The difference of two word error rates over the same utterances, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import divide, estimate_difference
from lightning_modules.evaluation.word_error_rate import count_word_errors

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairedDifference:
    """How much worse the second of two systems is, as shares: 0.01 is a point.

    Attributes:
        num_utterances: Utterances that both spoke.
        first: Micro word error rate of the first.
        second: Micro word error rate of the second.
        difference: ``second - first``; above 0 the second is worse.
        interval: 95 % interval of that, by bootstrap over the utterances, of which both keep the same ones.
    """

    num_utterances: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]


def paired_difference(first: Sequence[Pair], second: Sequence[Pair]) -> PairedDifference:
    """Compare two systems on the same utterances.

    The utterances that are drawn are the same for both, so what makes an utterance hard for both drops out, and the
    interval is narrower than that of two rates by themselves.

    Args:
        first: What was to be said and what was heard, a pair for each utterance.
        second: The same of the other system, in the same order.

    Returns:
        Both rates and their difference.

    Raises:
        UserError: If there are no utterances, or not as many of one as of the other.
    """
    if len(first) != len(second) or not first:
        raise UserError(f"{len(first)} utterances against {len(second)}: give the same ones of both, at least one")
    counts = [count_word_errors(pairs) for pairs in (first, second)]
    rates = [float(divide(errors.sum(), words.sum())) for errors, words in counts]
    found = estimate_difference(*counts[0], *counts[1])
    return PairedDifference(len(first), rates[0], rates[1], found.value, (found.low, found.high))

"""Word error rates of many utterances, micro and macro, on normalised text."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import divide, estimate_rate
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME, normalize_text


@dataclass(frozen=True)
class WordErrorRates:
    """Word error rates as shares: 1.0 means as many errors as words.

    Attributes:
        micro: Errors of all utterances over words of all utterances.
        macro: Mean of the utterances' own rates.
        interval: 95 % interval of ``micro``, by bootstrap over the utterances.
        normalizer: Name of the normaliser that both texts went through.
    """

    micro: float
    macro: float
    interval: tuple[float, float]
    normalizer: str = NORMALIZER_NAME

    def in_percent(self) -> str:
        """Give ``micro`` and its interval in words."""
        low, high = self.interval
        return f"{100 * self.micro:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def word_error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrorRates:
    """Compare what was said with what was heard, word by word, after :func:`normalize_text`.

    For an empty hypothesis every word is an error. For an empty reference each heard word is an error, and its own rate
    is 1 if anything was heard and 0 if not.

    Args:
        references: What was said, one text per utterance.
        hypotheses: What was heard, in the same order.

    Returns:
        The rates.

    Raises:
        UserError: If there are no utterances, or not as many hypotheses as references.
    """
    if len(references) != len(hypotheses):
        raise UserError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each")
    if not references:
        raise UserError("no utterances: a word error rate needs at least one")
    errors, words = count_word_errors([*zip(references, hypotheses, strict=True)])
    micro = estimate_rate(errors, words)
    return WordErrorRates(micro.value, float(divide(errors, words).mean()), (micro.low, micro.high))


def count_word_errors(pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Count the word errors of each utterance, and the words of its reference, after :func:`normalize_text`.

    Args:
        pairs: Reference and hypothesis of each utterance, at least one.

    Returns:
        Errors and words, each ``(N,) int64``.
    """
    counts = [_count(normalize_text(reference), normalize_text(hypothesis)) for reference, hypothesis in pairs]
    errors, words = np.array(counts, dtype=np.int64).T
    return errors, words


def _count(reference: str, hypothesis: str) -> tuple[int, int]:
    """Count word errors, and the words of the reference."""
    if not reference:
        return len(hypothesis.split()), 0
    counts = jiwer.process_words(reference, hypothesis)
    return counts.substitutions + counts.deletions + counts.insertions, len(reference.split())

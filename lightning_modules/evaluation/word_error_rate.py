"""Word error rates of many utterances, micro and macro, on normalised text."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME, normalize_text

NUM_RESAMPLES = 2000
QUANTILES = 0.025, 0.975


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
    counts = [
        _count(*pair) for pair in zip(map(normalize_text, references), map(normalize_text, hypotheses), strict=True)
    ]
    errors, words = (np.array(column) for column in zip(*counts, strict=True))
    rates = np.where(words > 0, errors / np.maximum(words, 1), errors > 0)
    drawn = np.random.default_rng(0).integers(len(counts), size=(NUM_RESAMPLES, len(counts)))
    low, high = np.quantile(_micro(errors[drawn], words[drawn]), QUANTILES)
    return WordErrorRates(float(_micro(errors, words)), float(rates.mean()), (float(low), float(high)))


def _count(reference: str, hypothesis: str) -> tuple[int, int]:
    """Count word errors, and the words of the reference."""
    if not reference:
        return len(hypothesis.split()), 0
    counts = jiwer.process_words(reference, hypothesis)
    return counts.substitutions + counts.deletions + counts.insertions, len(reference.split())


def _micro(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Divide all errors by all words along the last dimension; without any word it is 1 if anything was heard."""
    num_errors, num_words = errors.sum(axis=-1), words.sum(axis=-1)
    return np.where(num_words > 0, num_errors / np.maximum(num_words, 1), num_errors > 0)

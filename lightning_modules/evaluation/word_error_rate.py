"""Word error rates of many utterances, micro and macro, on normalised text."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from lightning_modules.errors import UserError
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME, normalize_text


@dataclass(frozen=True)
class WordErrorRates:
    """Word error rates as shares: 1.0 means as many errors as words.

    Attributes:
        micro: Errors of all utterances over words of all utterances.
        macro: Mean of the utterances' own rates.
        normalizer: Name of the normaliser that both texts went through.
    """

    micro: float
    macro: float
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
    num_errors = num_words = 0
    rates = []
    for reference, hypothesis in zip(map(normalize_text, references), map(normalize_text, hypotheses), strict=True):
        words, heard = len(reference.split()), len(hypothesis.split())
        errors = heard
        if reference:
            counts = jiwer.process_words(reference, hypothesis)
            errors = counts.substitutions + counts.deletions + counts.insertions
        rates.append(errors / words if words else float(heard > 0))
        num_errors += errors
        num_words += words
    micro = num_errors / num_words if num_words else float(num_errors > 0)
    return WordErrorRates(micro, sum(rates) / len(rates))

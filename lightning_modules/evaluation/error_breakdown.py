"""Where word errors sit: by kind of query, by position of the word in its reply, by lag between text and speech."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import QUANTILES, Estimate, divide, draw_counts, resample_rates
from lightning_modules.evaluation.text_normalization import normalize_text
from lightning_modules.evaluation.word_error_rate import count_word_errors

Pair = tuple[str, str]


@dataclass(frozen=True)
class ErrorGroup:
    """The errors of the words that have something in common.

    Attributes:
        key: What they have in common.
        num_utterances: Utterances with such words.
        num_words: These words.
        num_errors: Errors at them.
        rate: Errors per word, with its interval over utterances.
    """

    key: Hashable
    num_utterances: int
    num_words: int
    num_errors: int
    rate: Estimate


@dataclass(frozen=True)
class ErrorBreakdown:
    """Errors by group.

    Attributes:
        groups: In the order of their keys.
        num_errors_outside: Errors at words of no group: of an utterance without a kind, at a word without a place.
    """

    groups: tuple[ErrorGroup, ...]
    num_errors_outside: int


def errors_by_kind(pairs: Sequence[Pair], kinds: Sequence[Hashable | None]) -> ErrorBreakdown:
    """Group errors by the kind of query that was answered.

    Args:
        pairs: What was to be said and what was heard, a pair for each utterance.
        kinds: The kind of each, such as the intent of a synthetic dialogue; None for one of no kind.

    Returns:
        A group per kind; its errors and words are those that the word error rate counts.

    Raises:
        UserError: If there are no pairs, or not a kind for each.
    """
    _require_one_for_each(pairs, kinds, "kinds")
    errors, words = count_word_errors(pairs)
    return _group([[(kind, *found)] for kind, found in zip(kinds, zip(errors, words, strict=True), strict=True)])


def errors_by_position(pairs: Sequence[Pair]) -> ErrorBreakdown:
    """Group errors by the index of the word in its reply, from 0, the first."""
    return _errors_by_word(pairs, lambda index, num_words: index)


def errors_by_position_from_end(pairs: Sequence[Pair]) -> ErrorBreakdown:
    """Group errors by the index of the word counted from the last, which is 0."""
    return _errors_by_word(pairs, lambda index, num_words: num_words - 1 - index)


def errors_by_label(pairs: Sequence[Pair], labels: Sequence[Sequence[Hashable | None]]) -> ErrorBreakdown:
    """Group errors by a label of each word, such as the blocks between its anchor and its speech.

    Args:
        pairs: What was to be said and what was heard.
        labels: For each utterance a label per word of what was to be said, after :func:`normalize_text`; None for a
            word of no group.

    Returns:
        A group per label.

    Raises:
        UserError: If there are no pairs, or not as many labels as words.
    """
    _require_one_for_each(pairs, labels, "lists of labels")
    placed = []
    for (reference, hypothesis), own in zip(pairs, labels, strict=True):
        errors = errors_at_words(reference, hypothesis)
        if len(own) != len(errors):
            raise UserError(f"{reference!r} has {len(errors)} words and {len(own)} labels; give one label per word")
        placed.append([(label, count, 1) for label, count in zip(own, errors, strict=True)])
    return _group(placed, sum(_errors_without_words(*pair) for pair in pairs))


def errors_at_words(reference: str, hypothesis: str) -> list[int]:
    """Count the errors at each word of a reference.

    A word that is replaced or missing has one error. A word that was heard too much counts at the word of the reference
    before it, or at the first one if there is none, so that all errors add up to those of the word error rate.

    Args:
        reference: What was to be said.
        hypothesis: What was heard.

    Returns:
        A count for each word of the reference after :func:`normalize_text`; none if it has no words.
    """
    said, heard = normalize_text(reference), normalize_text(hypothesis)
    if not said:
        return []
    errors = [0] * len(said.split())
    for chunk in jiwer.process_words(said, heard).alignments[0]:
        if chunk.type in ("substitute", "delete"):
            for index in range(chunk.ref_start_idx, chunk.ref_end_idx):
                errors[index] += 1
        elif chunk.type == "insert":
            errors[max(0, chunk.ref_start_idx - 1)] += chunk.hyp_end_idx - chunk.hyp_start_idx
    return errors


def _errors_by_word(pairs: Sequence[Pair], key: Callable[[int, int], Hashable]) -> ErrorBreakdown:
    labels = []
    for reference, _ in pairs:
        num_words = len(normalize_text(reference).split())
        labels.append([key(index, num_words) for index in range(num_words)])
    return errors_by_label(pairs, labels)


def _errors_without_words(reference: str, hypothesis: str) -> int:
    return 0 if normalize_text(reference) else len(normalize_text(hypothesis).split())


def _require_one_for_each(pairs: Sequence[Pair], others: Sequence[object], what: str) -> None:
    if not pairs or len(pairs) != len(others):
        raise UserError(f"{len(pairs)} utterances and {len(others)} {what}: give one for each, and at least one")


def _group(placed: Sequence[Sequence[tuple[Hashable | None, int, int]]], num_outside: int = 0) -> ErrorBreakdown:
    """Sum up key, errors and words of each utterance's places, by key."""
    keys = {key for places in placed for key, _, _ in places if key is not None}
    column = {key: index for index, key in enumerate(sorted(keys, key=_in_order))}
    errors, words, present = np.zeros((3, len(placed), len(column)), dtype=np.int64)
    for row, places in enumerate(placed):
        for key, num_errors, num_words in places:
            if key is None:
                num_outside += int(num_errors)
            else:
                errors[row, column[key]] += num_errors
                words[row, column[key]] += num_words
                present[row, column[key]] = 1
    if not column:
        return ErrorBreakdown((), num_outside)
    counts = draw_counts(len(placed))
    # A draw without an utterance of the group says nothing about it.
    resamples = np.where(counts @ present > 0, resample_rates(errors, words, counts), np.nan)
    low, high = np.nanquantile(resamples, QUANTILES, axis=0)
    rates = divide(errors.sum(axis=0), words.sum(axis=0))
    groups = []
    for key, index in column.items():
        num_utterances, num_words, num_errors = (int(of_all[:, index].sum()) for of_all in (present, words, errors))
        rate = Estimate(float(rates[index]), float(low[index]), float(high[index]))
        groups.append(ErrorGroup(key, num_utterances, num_words, num_errors, rate))
    return ErrorBreakdown(tuple(groups), num_outside)


def _in_order(key: Hashable) -> tuple[bool, float, str]:
    """Sort numbers by size, and before texts."""
    return (False, float(key), "") if isinstance(key, int | float) else (True, 0.0, str(key))

"""Intervals: counted draws are those of indices, many groups at once are each alone, pairs narrow them."""

import numpy as np
import pytest

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import (
    NUM_RESAMPLES,
    Estimate,
    divide,
    draw_counts,
    estimate_difference,
    resample_rates,
)

WORDS = np.full(100, 5)


def test_counted_draws_are_draws_of_indices() -> None:
    counts = draw_counts(7)
    assert counts.shape == (NUM_RESAMPLES, 7) and set(counts.sum(axis=1)) == {7.0}
    drawn = np.random.default_rng(0).integers(7, size=(NUM_RESAMPLES, 7))
    errors, words = np.arange(7) % 3, np.arange(7) + 1
    by_index = divide(errors[drawn].sum(axis=1), words[drawn].sum(axis=1))
    np.testing.assert_allclose(resample_rates(errors, words, counts), by_index)


def test_many_groups_at_once_are_each_alone() -> None:
    generator = np.random.default_rng(1)
    errors, words = generator.integers(3, size=(20, 4)), generator.integers(1, 6, size=(20, 4))
    counts = draw_counts(20)
    together = resample_rates(errors, words, counts)
    for group in range(4):
        np.testing.assert_allclose(together[:, group], resample_rates(errors[:, group], words[:, group], counts))


def test_a_difference_is_paired() -> None:
    errors = np.random.default_rng(2).integers(4, size=100)
    found = estimate_difference(errors, WORDS, errors + 1, WORDS)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    turned = estimate_difference(errors + 1, WORDS, errors, WORDS)
    assert turned.value == -found.value and not found.includes_zero
    assert estimate_difference(errors, WORDS, errors[::-1], WORDS).includes_zero


def test_an_estimate_reads_as_percent() -> None:
    assert Estimate(0.1134, 0.0991, 0.1279).in_percent() == "11.3 (9.9 to 12.8)"
    assert Estimate(-0.0004, -0.01, 0.02).in_percent(2, sign=True) == "-0.04 (-1.00 to +2.00)"


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(UserError, match="at least one item"):
        draw_counts(0)

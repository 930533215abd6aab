"""Intervals over seeds: the same dialogues for all are drawn together, each seed's own apart; pairs stay pairs."""

import numpy as np
import pytest

from lightning_modules.errors import UserError
from lightning_modules.evaluation.bootstrap import Estimate, estimate_difference, estimate_rate
from lightning_modules.evaluation.over_seeds import (
    SeedErrors,
    difference_over_seeds,
    estimate_over_seeds,
    smallest_shown,
)

NAMES = tuple(f"test_{index}" for index in range(60))


def seed_errors(errors: np.ndarray, name: str = "") -> SeedErrors:
    return SeedErrors(tuple(name + one for one in NAMES), errors, np.full(60, 5))


def bounds(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def test_one_seed_is_no_seed_and_equal_seeds_do_not_widen() -> None:
    errors, others = np.random.default_rng(0).integers(3, size=(2, 60))
    words = np.full(60, 5)
    for num_seeds in (1, 3):
        first, second = [seed_errors(errors)] * num_seeds, [seed_errors(others)] * num_seeds
        assert bounds(estimate_over_seeds(first)) == pytest.approx(bounds(estimate_rate(errors, words)))
        alone = estimate_difference(errors, words, others, words)
        assert bounds(difference_over_seeds(first, second)) == pytest.approx(bounds(alone))


def test_seeds_that_differ_widen_the_interval_to_their_spread() -> None:
    """Four seeds with 0, 1, 2 and 3 errors in each dialogue: their mean has a standard error of 0.559 errors."""
    found = estimate_over_seeds([seed_errors(np.full(60, errors)) for errors in range(4)])
    assert found.value == pytest.approx(1.5 / 5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.559 / 5, rel=0.15)


def test_dialogues_of_its_own_average_out_over_seeds() -> None:
    """Where each seed has the same errors at the same places, shared dialogues are hard together, others are not."""
    errors = np.where(np.arange(60) % 6 == 0, 5, 0)
    shared = estimate_over_seeds([seed_errors(errors)] * 4)
    own = estimate_over_seeds([seed_errors(errors, name) for name in "abcd"])
    assert own.value == shared.value == pytest.approx(1 / 6)
    # The squared shares of four seeds that are drawn add up to 7 / 16 on average.
    assert own.high - own.low == pytest.approx((7 / 16) ** 0.5 * (shared.high - shared.low), rel=0.1)


def test_a_constant_difference_has_no_interval_in_either_design() -> None:
    for names in ("aaa", "abc"):
        first = [seed_errors(np.arange(60) % 4, name) for name in names]
        second = [seed_errors(np.arange(60) % 4 + 1, name) for name in names]
        assert bounds(difference_over_seeds(first, second)) == pytest.approx((0.2, 0.2, 0.2))


def test_the_smallest_difference_shown_is_that_of_its_standard_error() -> None:
    """A standard error of 1 point: 2.8 points are shown with 80 % power."""
    assert smallest_shown(Estimate(0.0, -0.0196, 0.0196)) == pytest.approx(0.028)


def test_what_is_not_alike_is_refused() -> None:
    with pytest.raises(UserError, match="other seeds or answered other dialogues"):
        difference_over_seeds([seed_errors(np.zeros(60), "a")], [seed_errors(np.zeros(60), "b")])
    with pytest.raises(UserError, match="no seed"):
        estimate_over_seeds([])

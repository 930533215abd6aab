"""Paired differences: what makes utterances hard for both drops out, and the sign says who is worse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.evaluation.paired_word_errors import paired_difference
from lightning_modules.evaluation.word_error_rate import word_error_rates

SAID = "one two three four"
HEARD = ("one two three four", "one two three", "one five", "")


def test_rates_and_difference_are_those_of_the_whole() -> None:
    first = [(SAID, HEARD[0]), (SAID, HEARD[1]), ("five", "five")]
    second = [(SAID, HEARD[1]), (SAID, HEARD[2]), ("five", "five")]
    found = paired_difference(first, second)
    assert (found.num_utterances, found.first, found.second) == (3, pytest.approx(1 / 9), pytest.approx(4 / 9))
    assert found.difference == pytest.approx(3 / 9)
    assert found.interval[0] <= found.difference <= found.interval[1]
    turned = paired_difference(second, first)
    assert turned.difference == -found.difference and turned.interval == pytest.approx(
        [-b for b in found.interval[::-1]]
    )


@given(st.lists(st.sampled_from(HEARD), min_size=1, max_size=30))
def test_equal_systems_do_not_differ_however_hard_the_utterances_are(heard: list[str]) -> None:
    pairs = [(SAID, one) for one in heard]
    found = paired_difference(pairs, pairs)
    assert (found.difference, found.interval) == (0.0, (0.0, 0.0))
    assert found.first == pytest.approx(word_error_rates([SAID] * len(heard), heard).micro)


def test_the_interval_is_narrower_than_that_of_either_rate() -> None:
    """Every tenth utterance is lost by both: alone that is a wide interval, as a difference it is none."""
    first = [(SAID, "" if index % 10 == 0 else SAID) for index in range(100)]
    second = [(SAID, "one two three" if index == 5 else heard) for index, (_, heard) in enumerate(first)]
    low, high = paired_difference(first, second).interval
    alone = word_error_rates(*zip(*first, strict=True)).interval
    assert 0 <= low <= 0.0025 <= high < 0.01 < alone[1] - alone[0]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="1 utterances against 2"):
        paired_difference([(SAID, SAID)], [(SAID, SAID)] * 2)
    with pytest.raises(UserError, match="at least one"):
        paired_difference([], [])

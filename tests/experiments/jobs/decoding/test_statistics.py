"""Statistics of repeated timings, against figures made by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.jobs.decoding.statistics import count_equal, order_of_turn, paired_ratio, spread_of

seconds = st.floats(0.01, 100.0)


def test_a_spread_is_the_median_with_the_10th_and_90th_percentile() -> None:
    assert spread_of([11, 3, 5, 7, 9, 1, 2, 10, 4, 8, 6]) == (6.0, 2.0, 10.0)
    assert spread_of([4.0]) == (4.0, 4.0, 4.0)


def test_an_interval_holds_95_percent_of_the_medians_that_chance_would_give() -> None:
    """The median of 9 draws out of 1 to 9 is at most 1 in 0.1 % and at most 2 in 3.1 % of all cases (binomial)."""
    assert paired_ratio([2, 4, 6, 8, 10, 12, 14, 16, 18], [2] * 9) == (5.0, 2.0, 8.0)
    assert paired_ratio([1, 3], [1, 1]) == (2.0, 1.0, 3.0), "1 in a quarter of the cases, 3 in another"
    assert paired_ratio([3.0] * 5, [2.0] * 5) == (1.5, 1.5, 1.5)


def test_tokens_are_equal_place_by_place() -> None:
    assert count_equal([1, 2, 3, 4], [1, 9, 3]) == 2 and count_equal([2, 1], [1, 2]) == 0 and count_equal([], [1]) == 0


def test_the_seed_decides_what_is_drawn() -> None:
    values, others = [1.0, 2.5, 3.7, 1.2, 8.0, 2.2, 1.7, 5.1], [1.0] * 8
    assert paired_ratio(values, others, 1) == paired_ratio(values, others, 1)
    assert len({paired_ratio(values, others, seed)[1:] for seed in range(20)}) > 1


@settings(max_examples=25)
@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=6))
def test_a_round_in_which_the_machine_was_slow_changes_no_ratio(rounds: list[tuple[float, float, float]]) -> None:
    own, others, slowness = zip(*rounds, strict=True)
    slowed = [[value * factor for value, factor in zip(one, slowness, strict=True)] for one in (own, others)]
    assert paired_ratio(*slowed) == pytest.approx(paired_ratio(own, others))


def test_rounds_need_pairs() -> None:
    with pytest.raises(ValueError, match="2 rounds beside 1"):
        paired_ratio([1.0, 2.0], [1.0])


@given(st.integers(1, 7), st.integers(0, 100))
def test_of_two_names_each_comes_first_as_often_and_every_name_begins(num_names: int, pair: int) -> None:
    names = list(range(num_names))
    forwards, backwards = order_of_turn(names, 2 * pair), order_of_turn(names, 2 * pair + 1)
    assert sorted(forwards) == names
    assert backwards == forwards[::-1]
    assert {order_of_turn(names, 2 * (pair + later))[0] for later in names} == set(names)


def test_the_order_of_the_first_rounds() -> None:
    assert ["".join(order_of_turn("abc", turn)) for turn in range(5)] == ["abc", "cba", "bca", "acb", "cab"]

"""Rounds become fewer, then replies shorter, until they fit into the time; what never fits is refused."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.jobs.decoding.plan import TimeBudget, select
from lightning_modules.errors import UserError


def budget(minutes: float, **settings: Any) -> TimeBudget:
    given = {"num_rounds": 15, "min_rounds": 3, "num_blocks": 6, "min_blocks": 3, **settings}
    return TimeBudget(max_minutes=minutes, start_s=time.perf_counter(), **given)


@pytest.mark.parametrize(
    ("minutes", "reserved_s", "expected"),
    [
        (100.0, 0.0, (15, 6)),  # all that is asked for
        (6.1, 0.0, (6, 6)),  # fewer rounds, of 60 s
        (2.6, 0.0, (3, 5)),  # shorter replies rather than fewer than three rounds
        (2.6, 40.0, (3, 3)),
    ],
)
def test_what_fits_is_planned(minutes: float, reserved_s: float, expected: tuple[int, int]) -> None:
    plan = budget(minutes).plan({"ntp, static": 8.0, "mdm_1, static": 2.0}, reserved_s)
    assert (plan.num_rounds, plan.num_blocks) == expected
    assert plan.round_s == pytest.approx(10.0 * plan.num_blocks)


@given(
    st.floats(1e-3, 60.0), st.lists(st.floats(1e-4, 30.0), min_size=1, max_size=9), st.integers(1, 20),
    st.integers(1, 5), st.integers(3, 9), st.floats(0.0, 100.0),
)  # fmt: skip
def test_a_plan_keeps_to_its_limits(
    minutes: float, block_s: list[float], num_rounds: int, min_rounds: int, num_blocks: int, reserved_s: float
) -> None:
    some = budget(minutes, num_rounds=num_rounds, min_rounds=min(min_rounds, num_rounds), num_blocks=num_blocks)
    cases = {str(index): value for index, value in enumerate(block_s)}
    try:
        plan = some.plan(cases, reserved_s)
    except UserError:
        assert some.min_rounds * 3 * sum(block_s) > some.left_s - reserved_s - 0.1
        return
    assert some.min_rounds <= plan.num_rounds <= num_rounds and 3 <= plan.num_blocks <= num_blocks
    assert plan.num_rounds * plan.round_s <= 60 * minutes - reserved_s + 1e-6


def test_what_never_fits_is_refused_with_what_would() -> None:
    with pytest.raises(UserError, match=r"3 rounds of 2 rows, 30 s each .* give max_minutes=3 or more, or select rows"):
        budget(1.0).plan({"ntp, static": 8.0, "mdm_1, static": 2.0})
    assert budget(2.6).plan({"ntp, static": 8.0, "mdm_1, static": 2.0}).num_rounds == 3


def test_a_machine_that_becomes_slower_is_given_fewer_rounds() -> None:
    some = budget(1.0)
    assert some.has_time_for(5, 50.0) and not some.has_time_for(5, 61.0) and not some.has_time_for(5, 50.0, 20.0)
    assert some.has_time_for(2, 1e9), "the least number is measured in any case"


def test_rows_are_selected_by_name() -> None:
    assert select("rows", {"a": 1, "b": None, "c": 3}, None) == {"a": 1, "c": 3}
    assert select("rows", {"a": 1, "b": 2, "c": 3}, ["c", "a"]) == {"a": 1, "c": 3}
    with pytest.raises(UserError, match=r"only_rows: 'b' is none of the rows; name some of \['a'\]"):
        select("rows", {"a": 1, "b": None}, ["b"])

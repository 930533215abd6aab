"""The weight of an objective: 0, then linear, then its value; a function of the global step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.errors import UserError


@given(weight=st.floats(0, 10), start=st.integers(0, 50), num_steps=st.integers(0, 50), step=st.integers(0, 200))
def test_a_weight_is_nothing_then_grows_then_stays(weight: float, start: int, num_steps: int, step: int) -> None:
    ramp = Ramp(weight, start, num_steps)
    assert 0.0 <= ramp.at(step) <= ramp.at(step + 1) <= weight
    if step < start:
        assert ramp.at(step) == 0.0
    if step >= start + max(0, num_steps - 1):
        assert ramp.at(step) == weight


def test_it_grows_by_equal_parts() -> None:
    assert [Ramp(1.0, 2, 4).at(step) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("arguments", [(-0.1,), (float("nan"),), (0.1, -1), (0.1, 0, -1)])
def test_numbers_out_of_range_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="give a finite number of at least 0"):
        Ramp(*arguments)  # type: ignore[arg-type]

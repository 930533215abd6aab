"""Numbers out of range are refused by name, whatever they are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.number_checks import (
    require_at_least,
    require_below_one,
    require_divisible,
    require_positive,
    require_within,
)

CHECKS = {
    "at least": (lambda value: require_at_least(2, size=value), lambda value: math.isfinite(value) and value >= 2),
    "positive": (lambda value: require_positive(size=value), lambda value: math.isfinite(value) and value > 0),
    "within": (lambda value: require_within(-1, 3, size=value), lambda value: -1 <= value <= 3),
    "below one": (lambda value: require_below_one(size=value), lambda value: 0 <= value < 1),
}
NUMBERS = st.one_of(st.floats(), st.integers(-5, 5), st.sampled_from([0.0, 1.0, -1.0, 2.0, 3.0, math.nan, math.inf]))


@pytest.mark.parametrize("name", CHECKS)
@given(value=NUMBERS)
def test_exactly_the_numbers_in_range_pass(name: str, value: float) -> None:
    check, is_allowed = CHECKS[name]
    if is_allowed(value):
        check(value)
    else:
        with pytest.raises(UserError, match=r"^size is .*; give a "):
            check(value)


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_left_out_passes(name: str) -> None:
    CHECKS[name][0](None)  # type: ignore[arg-type]


@given(width=st.integers(1, 200), num_parts=st.integers(1, 20))
def test_a_width_that_does_not_divide_is_refused_with_one_that_does(width: int, num_parts: int) -> None:
    if width % num_parts == 0:
        require_divisible("width", width, "num_heads", num_parts)
        return
    with pytest.raises(UserError, match=f"width is {width}, which num_heads {num_parts} does not divide") as caught:
        require_divisible("width", width, "num_heads", num_parts)
    proposed = int(str(caught.value).rsplit(" ", 1)[-1])
    require_divisible("width", proposed, "num_heads", num_parts)

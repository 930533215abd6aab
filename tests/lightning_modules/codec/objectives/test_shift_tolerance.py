"""The comparison of codes of moved speech: 0 where they agree, moves within bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.codec.objectives.shift_tolerance import ShiftTolerance
from lightning_modules.errors import UserError


@settings(deadline=None)
@given(seed=st.integers(0, 1_000), max_shift_ms=st.floats(0.5, 39))
def test_moves_reach_as_far_as_allowed_in_both_directions(seed: int, max_shift_ms: float) -> None:
    tolerance = ShiftTolerance(Ramp(0.1), max_shift_ms)
    shifts = tolerance.draw_shifts(400, 16_000, torch.Generator().manual_seed(seed))
    limit = 16 * max_shift_ms
    assert int(shifts.abs().max()) <= limit + 0.5
    assert int(shifts.min()) < -0.9 * limit + 1 and int(shifts.max()) > 0.9 * limit - 1


def test_equal_codes_cost_nothing_and_others_their_squared_distance() -> None:
    tolerance, codes = ShiftTolerance(Ramp(0.3, start_step=10)), torch.rand(2, 5, 4)
    assert float(tolerance(codes, codes.clone(), 10).mean) == 0.0
    term = tolerance(codes, codes + 0.5, 10)
    assert float(term.mean) == pytest.approx(0.25) and term.weight == 0.3 and int(term.count) == 2


@pytest.mark.parametrize("max_shift_ms", [0, -1, float("inf"), 2_000])
def test_an_impossible_move_is_refused(max_shift_ms: float) -> None:
    with pytest.raises(UserError, match="max_shift_ms is"):
        ShiftTolerance(Ramp(0.1), max_shift_ms)

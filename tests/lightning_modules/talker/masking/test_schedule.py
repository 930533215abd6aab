"""Levels of masking along training."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.talker.masking.schedule import MaskingSchedule
from lightning_modules.talker.masking.schemes import BlockBernoulli, GlobalBernoulli, HierarchicalBlockwise

LEVELS: list[dict[str, Any]] = [
    {"at": 0, "scheme": "global", "token_ratio": [0.3, 0.8]},
    {"at": 10, "scheme": "hierarchical", "block_ratio": [0.2, 0.4], "token_ratio": [0.3, 0.5]},
    {"at": 20, "scheme": "hierarchical", "block_ratio": [0.6, 1.0], "token_ratio": [0.5, 1.0]},
]


@pytest.mark.parametrize(
    ("shape", "quarter"), [("linear", (0.3, 0.55)), ("cosine", (0.2 + 0.4 * 0.1464466, 0.4 + 0.6 * 0.1464466))]
)
def test_ranges_move_between_places_of_one_scheme(shape: str, quarter: tuple[float, float]) -> None:
    schedule = MaskingSchedule(LEVELS, shape)
    assert schedule(12.5).block_ratio == pytest.approx(quarter)
    assert schedule(15).block_ratio == pytest.approx((0.4, 0.7))
    assert schedule(15).token_ratio == pytest.approx((0.4, 0.75))


def test_a_scheme_holds_until_the_next_one_and_the_last_levels_hold_on() -> None:
    schedule = MaskingSchedule(LEVELS)
    assert schedule(9.99).scheme == "global" and schedule(9.99).token_ratio == (0.3, 0.8)
    assert schedule(10).scheme == "hierarchical" and schedule(10).block_ratio == (0.2, 0.4)
    assert schedule(20) == schedule(1e9)


def test_piecewise_levels_do_not_move() -> None:
    schedule = MaskingSchedule(LEVELS, "piecewise")
    assert schedule(10) == schedule(19.9) != schedule(20)


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 30), shape=st.sampled_from(["linear", "cosine", "piecewise"]))
def test_levels_anywhere_are_possible_and_give_masks(place: float, shape: str) -> None:
    levels = MaskingSchedule(LEVELS, shape)(place)
    mask = levels.build()(torch.ones(4, 32, dtype=torch.bool), 8, torch.Generator().manual_seed(0))
    assert mask.any()
    assert all(value == value for value in levels.as_scalars().values())


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("global", GlobalBernoulli), ("block", BlockBernoulli), ("hierarchical", HierarchicalBlockwise)],
)
def test_a_scheme_builds_its_masking(scheme: str, kind: type) -> None:
    level = {"at": 0, "scheme": scheme, "token_ratio": [0.2, 0.9]}
    if scheme == "hierarchical":
        level["block_ratio"] = [0.5, 1.0]
    assert isinstance(MaskingSchedule([level])(3).build(), kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at": 1}, r"levels\[0\] is at 1; start at 0"),
        ({"at": "soon"}, r"levels\[0\]\.at is 'soon'"),
        ({"scheme": "globel"}, r"levels\[0\] has scheme 'globel'"),
        ({"token_ratio": [0.8, 0.3]}, r"levels\[0\]\.token_ratio is \(0\.8, 0\.3\)"),
        ({"token_ratio": 0.5}, r"levels\[0\]\.token_ratio is 0\.5"),
        ({"block_ratio": [0.5, 1.0]}, r"levels\[0\] has the keys .*block_ratio"),
    ],
)
def test_an_impossible_level_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskingSchedule([{**LEVELS[0], **changes}, *LEVELS[1:]])


def test_levels_out_of_order_a_wrong_shape_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels\[2\] is at 10, not behind 20"):
        MaskingSchedule([LEVELS[0], LEVELS[2], LEVELS[1]])
    with pytest.raises(ValueError, match="no shape 'quadratic'"):
        MaskingSchedule(LEVELS, "quadratic")
    with pytest.raises(ValueError, match="no levels"):
        MaskingSchedule([])

"""The rule that chooses, and the ends of what was tried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.jobs.budgets.points import Point, by_trial, choose, edges_of
from lightning_modules.errors import UserError


def point(
    errors: int, step: int, rate: float = 0.1, talker: str = "ntp", decoding: str = "ntp", trial: str = "trial"
) -> Point:
    return Point(f"{trial}-{rate}", talker, decoding, rate, step, 1e9 * step, (errors, 0), (5, 5))


def test_the_fewest_errors_win_then_the_fewest_steps() -> None:
    points = [point(2, 100), point(1, 300), point(1, 200, 0.2), point(1, 200, 0.3), point(0, 100, decoding="ntp_8")]
    assert choose(points, {"ntp": "ntp"}) == {"ntp": points[2]}
    assert points[2].wer.value == 0.1 and points[2].wer.low <= 0.1 <= points[2].wer.high
    with pytest.raises(UserError, match="mdm was not judged under mdm_4"):
        choose(points, {"mdm": "mdm_4"})


def test_a_choice_at_an_end_is_told() -> None:
    points = [point(3, step, rate) for step in (100, 200) for rate in (0.1, 0.2, 0.3)]
    assert edges_of(points, point(1, 100, 0.2)) == []
    assert edges_of(points, point(1, 100, 0.1)) == ["smallest rate"]
    assert edges_of(points, point(1, 200, 0.3)) == ["largest rate", "last step"]
    assert edges_of(points[::3], point(1, 100, 0.1)) == [], "one rate has no ends"
    longer = [point(3, step, 0.2, trial="long") for step in (300, 600)]
    assert edges_of([*points, *longer], point(1, 200, 0.2)) == [], "a longer trial went on behind it"
    assert edges_of([*points, *longer], point(1, 600, 0.2, trial="long")) == ["last step"]


def test_trials_of_one_rate_and_two_lengths_stay_apart() -> None:
    points = [point(3, step, 0.2, trial="long") for step in (600, 300)]
    points += [point(3, 100, 0.3), point(3, 200, 0.2), point(3, 100, 0.2)]
    found = {name: [one.step for one in line] for name, line in by_trial(points).items()}
    assert list(found.items()) == [("trial-0.2", [100, 200]), ("long-0.2", [300, 600]), ("trial-0.3", [100])]


drawn = st.builds(point, st.integers(0, 5), st.integers(1, 9), st.sampled_from([0.1, 0.2, 0.3]))


@given(st.lists(drawn, min_size=1, max_size=20), st.randoms())
def test_the_order_of_trials_does_not_matter(points: list[Point], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(points)
    random.shuffle(shuffled)
    assert choose(shuffled, {"ntp": "ntp"}) == choose(points, {"ntp": "ntp"})

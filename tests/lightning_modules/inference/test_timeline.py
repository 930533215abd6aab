"""What a timeline says of the first sound, by figures made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.inference.clocks import AddedClock, WallClock
from lightning_modules.inference.timeline import SPEECH_ENCODER, STAGES, TALKER, THINKER, VOCODER, PartTimes, Timeline


def make(*spans: tuple[str, float, float]) -> Timeline:
    timeline = Timeline()
    for number, (stage, start_s, end_s) in enumerate(spans):
        timeline.add(stage, number, (start_s, end_s))
    return timeline


def test_work_at_the_same_time_counts_once() -> None:
    timeline = make(
        (SPEECH_ENCODER, 0, 1), (THINKER, 1, 3), (THINKER, 3.5, 6), (TALKER, 3.25, 5), (TALKER, 5, 8), (VOCODER, 5.5, 7)
    )  # fmt: skip
    # the thinker writes on beside the talker, which decodes block 1 beside the vocoder
    assert timeline.parts_until(7) == PartTimes(1, 2, 0.25 + 1.75 + 0.5, 1.5)
    assert timeline.busy() == PartTimes(1, 4.5, 4.75, 1.5) and timeline.end_s == 8
    assert timeline.parts_until(7).as_milliseconds()["total"] == 7000


def test_time_in_which_nobody_works_counts_for_who_begins_next() -> None:
    timeline = make((SPEECH_ENCODER, 0, 1), (THINKER, 1, 2), (TALKER, 2.5, 3), (VOCODER, 3.25, 4))
    assert timeline.parts_until(4.5) == PartTimes(1, 1, 1, 0.25 + 0.75 + 0.5)


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.floats(0, 9), st.floats(0, 3)), max_size=12), st.floats(0, 12))
def test_parts_add_up_to_the_moment(pieces: list[tuple[str, float, float]], end_s: float) -> None:
    timeline = make(*((stage, start_s, start_s + length) for stage, start_s, length in pieces))
    parts = vars(timeline.parts_until(end_s)).values()
    assert sum(parts) == pytest.approx(end_s) and min(parts) >= 0


def test_an_added_clock_puts_work_behind_work() -> None:
    clock = AddedClock(1.0)
    assert [clock.place(0.5), clock.replay(0.25), (clock.now(), 0)] == [(1.0, 1.5), (1.5, 1.75), (1.75, 0)]


def test_a_wall_clock_lets_work_end_now() -> None:
    clock = WallClock(5.0)
    start_s, end_s = clock.place(0.5)
    assert end_s - start_s == pytest.approx(0.5) and 5.0 <= end_s <= clock.now() < 65.0
    start_s, end_s = clock.replay(0.5)
    assert start_s == end_s <= clock.now()

"""Where errors sit: hand-made replies, and the sums of the word error rate for any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.evaluation.error_breakdown import (
    ErrorBreakdown,
    errors_at_words,
    errors_by_kind,
    errors_by_label,
    errors_by_position,
    errors_by_position_from_end,
)
from lightning_modules.evaluation.word_error_rate import count_word_errors

TEXTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join)
PAIRS = [("One two three.", "one too"), ("one two", "one two two"), ("one", "one")]


def counts(found: ErrorBreakdown) -> dict:
    return {group.key: (group.num_utterances, group.num_words, group.num_errors) for group in found.groups}


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a b c", "a b c", [0, 0, 0]),
        ("a b c", "a c", [0, 1, 0]),
        ("a b c", "x b c", [1, 0, 0]),
        ("a b c", "x y a b c", [2, 0, 0]),
        ("a b c", "a b c d e", [0, 0, 2]),
        ("a b", "", [1, 1]),
        ("...", "a", []),
    ],
)
def test_errors_stand_at_their_words(said: str, heard: str, errors: list[int]) -> None:
    assert errors_at_words(said, heard) == errors


def test_positions_are_counted_from_both_ends() -> None:
    assert counts(errors_by_position(PAIRS)) == {0: (3, 3, 0), 1: (2, 2, 2), 2: (1, 1, 1)}
    assert counts(errors_by_position_from_end(PAIRS)) == {0: (3, 3, 2), 1: (2, 2, 1), 2: (1, 1, 0)}


def test_kinds_have_rates_with_intervals_over_their_own_utterances() -> None:
    pairs = [("a b", "a b"), ("a b", "a")] * 20 + [("a b", "")]
    found = errors_by_kind(pairs, ["song", "song"] * 20 + ["alarm"])
    assert counts(found) == {"alarm": (1, 2, 2), "song": (40, 80, 20)}
    alarm, song = (group.rate for group in found.groups)
    assert (alarm.value, alarm.low, alarm.high) == (1.0, 1.0, 1.0)
    assert (
        song.value == 0.25 and song.low == pytest.approx(0.17, abs=0.02) and song.high == pytest.approx(0.33, abs=0.02)
    )


def test_labels_are_of_words_and_none_is_outside() -> None:
    found = errors_by_label(PAIRS, [[0, 2, None], [0, 2], [0]])
    assert counts(found) == {0: (3, 3, 0), 2: (2, 2, 2)} and found.num_errors_outside == 1
    assert errors_by_kind([("", "a b"), ("a", "a")], [None, "x"]).num_errors_outside == 2


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_no_error_is_lost(pairs: list[tuple[str, str]]) -> None:
    errors, words = count_word_errors(pairs)
    for found in (
        errors_by_position(pairs),
        errors_by_position_from_end(pairs),
        errors_by_kind(pairs, [0] * len(pairs)),
    ):
        assert sum(group.num_errors for group in found.groups) + found.num_errors_outside == errors.sum()
        assert sum(group.num_words for group in found.groups) == words.sum()


def test_what_does_not_match_is_refused() -> None:
    with pytest.raises(UserError, match="3 utterances and 1 kinds"):
        errors_by_kind(PAIRS, ["x"])
    with pytest.raises(UserError, match="has 3 words and 2 labels"):
        errors_by_label(PAIRS, [[0, 1], [0, 1], [0]])
    with pytest.raises(UserError, match="at least one"):
        errors_by_position([])

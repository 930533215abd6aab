"""Lags of words, by hand: the block that says a word less the one that tells it."""

from lightning_modules.evaluation.error_breakdown import errors_by_label
from lightning_modules.evaluation.word_lags import word_lags

TEXT = "The alarm, at 7:30."
# "The", " al", "arm", ",", " at", " 7", ":", "30", "."
SPANS = [(0, 3), (3, 6), (6, 9), (9, 10), (10, 13), (13, 15), (15, 16), (16, 18), (18, 19)]
STARTS = [(0, 0.04), (4, 0.5), (11, 0.7), (14, 1.3), (16, 1.5)]


def test_a_word_is_told_by_its_last_token_and_said_from_its_first_sound() -> None:
    """Two tokens per block of 0.64 s: the tokens of blocks 0 to 4; "7:30" counts as one that is two words."""
    lags = word_lags(TEXT, SPANS, STARTS, anchors_per_block=2, block_s=0.64)
    assert lags == [0, 0 - 1, 1 - 2, 2 - 4, 2 - 4]
    assert word_lags(TEXT, SPANS, STARTS, anchors_per_block=9, block_s=0.64) == [0, 0, 1, 2, 2]


def test_what_is_not_known_has_no_lag_but_a_place() -> None:
    lags = word_lags(TEXT, SPANS[:1], STARTS[:1], anchors_per_block=2, block_s=0.64)
    assert lags == [0, None, None, None, None]
    found = errors_by_label([(TEXT, "the alarm at seven")], [lags])
    assert [(group.key, group.num_errors) for group in found.groups] == [(0, 0)] and found.num_errors_outside == 2
    assert word_lags("... !", [], [], 1, 0.64) == []

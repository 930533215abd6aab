"""Word error rates: macro, micro and the edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME
from lightning_modules.evaluation.word_error_rate import word_error_rates

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(" ".join)


def test_micro_weighs_words_and_macro_utterances():
    rates = word_error_rates(["One, two three four.", "five"], ["one two three", "six"])
    assert rates.micro == pytest.approx(2 / 5)
    assert rates.macro == pytest.approx(0.625)
    assert rates.normalizer == NORMALIZER_NAME


def test_silence_is_all_wrong_and_insertions_exceed_one():
    assert word_error_rates(["a b c"], [""]).micro == 1.0
    assert word_error_rates(["a b c"], [" ?! "]).macro == 1.0
    assert word_error_rates(["a"], ["b c d"]).micro == 3.0


def test_empty_references():
    rates = word_error_rates(["...", "", "a"], ["b c", "", "a"])
    assert rates.macro == pytest.approx(1 / 3)
    assert rates.micro == 2.0
    assert word_error_rates([""], [""]).micro == 0.0


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_equal_texts_have_no_errors(texts):
    rates = word_error_rates(texts, [text.upper() + "." for text in texts])
    assert rates.micro == rates.macro == 0.0


def test_the_interval_is_that_of_the_binomial_where_each_utterance_is_one_word():
    """Of 100 words 20 are wrong: a standard error of 4 points."""
    rates = word_error_rates(["a"] * 100, ["b"] * 20 + ["a"] * 80)
    low, high = rates.interval
    assert low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.015) and high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.015)
    assert word_error_rates(["a"] * 100, ["b"] * 20 + ["a"] * 80).interval == rates.interval


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_the_interval_lies_within_the_rates_of_utterances(pairs):
    rates = word_error_rates(*zip(*pairs, strict=True))
    single = [word_error_rates([reference], [hypothesis]).micro for reference, hypothesis in pairs]
    assert min(single) - 1e-9 <= rates.interval[0] <= rates.interval[1] <= max(single) + 1e-9


def test_errors():
    with pytest.raises(ValueError, match="one for each"):
        word_error_rates(["a"], [])
    with pytest.raises(ValueError, match="at least one"):
        word_error_rates([], [])

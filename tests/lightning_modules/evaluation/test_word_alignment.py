"""Alignments are those of the word error rate."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.evaluation.text_normalization import normalize_text
from lightning_modules.evaluation.word_alignment import AlignedWords, align_words, repeated_share
from lightning_modules.evaluation.word_error_rate import count_word_errors

texts = st.lists(st.sampled_from(["a", "b", "c", "D!"]), max_size=8).map(" ".join)


@given(said=texts, heard=texts)
def test_errors_and_words_are_those_of_the_word_error_rate(said: str, heard: str) -> None:
    pieces = align_words(said, heard)
    assert " ".join(piece.said for piece in pieces if piece.said) == normalize_text(said)
    assert " ".join(piece.heard for piece in pieces if piece.heard) == normalize_text(heard)
    wrong = [max(len(one.said.split()), len(one.heard.split())) for one in pieces if one.kind != "equal"]
    errors, _ = count_word_errors([(said, heard)])
    assert sum(wrong) == errors[0]


def test_each_kind_of_error_is_told() -> None:
    assert align_words("The lamp is ON.", "hm the damp is") == [
        AlignedWords("insertion", "", "hm"),
        AlignedWords("equal", "the", "the"),
        AlignedWords("substitution", "lamp", "damp"),
        AlignedWords("equal", "is", "is"),
        AlignedWords("deletion", "on", ""),
    ]
    assert align_words("", "") == [] and align_words("...", "hm") == [AlignedWords("insertion", "", "hm")]


def test_words_that_are_said_again_are_counted_unless_the_text_says_them_twice() -> None:
    assert repeated_share("I told Bob", "i told i told bob") == 2 / 5
    assert repeated_share("bye bye Bob", "bye bye bob") == 0.0
    assert repeated_share("bye bye Bob", "bye bye bye bob") == 1 / 4
    assert repeated_share("Bob", "") == 0.0
    assert repeated_share("a b c d e", "a b c d e a b c d e") == 0.0, "five words are no stutter"


@given(heard=texts)
def test_what_is_heard_as_said_repeats_nothing(heard: str) -> None:
    assert repeated_share(heard, heard) == 0.0

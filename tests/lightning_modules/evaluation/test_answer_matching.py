"""Closed answers: what counts as the right one, by hand-made replies, in any language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.evaluation.answer_matching import (
    chosen_letter,
    makes_choice,
    matches_alias,
    repeated_share,
    words_to_match,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Café's menu: 1,250.50 euros!", "cafes menu 1250.50 euros"),
        ("Twenty five, twenty and sixty.", "25 20 and 60"),
        ("one hundred", "1 hundred"),
        ("答案是巴黎。", "答 案 是 巴 黎"),
        ("It's 3.14. An end", "its 3.14 end"),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_to_match(text) == words.split()


@pytest.mark.parametrize(
    ("reply", "aliases", "is_right"),
    [
        ("It was the Beatles, I think.", ["Rolling Stones", "the beatles"], True),
        ("Parisian", ["Paris"], False),
        ("In nineteen days", ["19"], True),
        ("New Jersey and York", ["New York"], False),
        ("法国的首都是巴黎", ["巴黎"], True),
        ("the", ["the"], False),
        ("", ["x"], False),
    ],
)
def test_an_alias_is_said_as_whole_words(reply: str, aliases: list[str], is_right: bool) -> None:
    assert matches_alias(reply, aliases) is is_right


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_reply_that_holds_an_alias_between_spaces_matches(before: str, alias: str, after: str) -> None:
    if words_to_match(alias) and words_to_match(f"{before} {alias} {after}") == [
        word for part in (before, alias, after) for word in words_to_match(part)
    ]:
        assert matches_alias(f"{before} {alias} {after}", [alias])


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b) because", "B"),
        ("(C)", "C"),
        ("The answer is D, not A.", "D"),
        ("A good question. The correct option is B.", "B"),
        ("I would say it is C", "C"),
        ("A dog and a cat", None),
        ("Either B or C", None),
        ("", None),
    ],
)
def test_letters(reply: str, letter: str | None) -> None:
    assert chosen_letter(reply) == letter


def test_a_choice_is_right_wrong_or_none() -> None:
    assert makes_choice("The answer is B.", ["(b)"]) is True
    assert makes_choice("A.", ["B"]) is False
    assert makes_choice("I do not know", ["B"]) is None
    assert makes_choice("Well, yes, no doubt", ["Yes"]) is True
    assert makes_choice("Maybe", ["no"]) is None


def test_repeating_is_one_less_the_error_rate() -> None:
    assert repeated_share("say it now", ["other words", "Say it."]) == pytest.approx(0.5)
    assert repeated_share("你好", ["你们好"]) == pytest.approx(2 / 3)
    assert repeated_share("", ["Say it."]) == 0.0

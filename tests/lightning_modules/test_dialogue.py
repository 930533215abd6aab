"""Turns before a query: what there may be, and the history of a batch cut into that of its dialogues."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.dialogue import History, Turn, as_written, check_turns
from lightning_modules.errors import UserError

SPOKEN, WRITTEN, ANSWER = Turn("user", is_spoken=True), Turn("user", "Hi."), Turn("assistant", "Yes.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("system", "Be brief."), "has the role 'system'"),
        (("assistant", "Yes.", True), "marked as spoken"),
        (("user",), "neither speech nor text"),
        (("assistant", "  "), "neither speech nor text"),
    ],
)
def test_turns_that_cannot_be_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Turn(*values)


def test_turns_alternate() -> None:
    check_turns([])
    check_turns([SPOKEN, ANSWER, WRITTEN, ANSWER])
    for turns in ([ANSWER], [WRITTEN], [WRITTEN, WRITTEN], [WRITTEN, ANSWER, ANSWER]):
        with pytest.raises(UserError, match="must alternate"):
            check_turns(turns)


def test_spoken_turns_can_be_written_if_they_have_a_text() -> None:
    assert as_written([Turn("user", "Hi.", is_spoken=True), ANSWER]) == (WRITTEN, ANSWER)
    with pytest.raises(UserError, match="earlier turn 3 is speech without a transcript"):
        as_written([WRITTEN, ANSWER, SPOKEN, ANSWER])


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
def test_a_row_is_the_dialogue_alone(lengths: list[list[int]]) -> None:
    """0 stands for a written turn, any other number for the samples of a spoken one."""
    turns = [[turn for n in own for turn in (SPOKEN if n else WRITTEN, ANSWER)] for own in lengths]
    speech = [[torch.arange(1.0, n + 1) + 10 * place for place, n in enumerate(own) if n] for own in lengths]
    history = History.of(turns, speech)
    assert len(history) == len(lengths)
    for row, (own_turns, own_speech) in enumerate(zip(turns, speech, strict=True)):
        alone, cut = History.of([own_turns], [own_speech]), history.row(row)
        assert cut.turns == alone.turns
        assert (cut.speech is None) == (alone.speech is None) == (not own_speech)
        if alone.speech is not None:
            assert torch.equal(cut.speech, alone.speech) and torch.equal(cut.speech_lengths, alone.speech_lengths)


def test_every_spoken_turn_has_samples() -> None:
    with pytest.raises(UserError, match="2 spoken turns, but samples of 1"):
        History.of([[SPOKEN, ANSWER, SPOKEN, ANSWER]], [[torch.ones(3)]])

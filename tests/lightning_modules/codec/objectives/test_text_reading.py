"""The reader of codes: no row hears another or its padding, it learns, and its gradient reaches the codes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.codec.objectives.text_reading import TextReading
from lightning_modules.errors import UserError
from lightning_modules.evaluation.text_normalization import ALPHABET, normalize_text


def make_reading(**arguments: int) -> TextReading:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextReading(3, Ramp(0.5), channels=8, **arguments)


CODES = torch.randn(3, 12, 3, generator=torch.Generator().manual_seed(1))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(4, 12), min_size=3, max_size=3))
def test_a_row_is_read_as_it_is_alone(lengths: list[int]) -> None:
    reading, texts = make_reading(), ["Hi!", "a cat", "no"]
    together = reading(CODES, torch.tensor(lengths), texts, 0)
    alone = [
        reading(CODES[row : row + 1, :length], torch.tensor([length]), [text], 0)
        for row, (length, text) in enumerate(zip(lengths, texts, strict=True))
    ]
    assert int(together.count) == sum(int(one.count) for one in alone) == len("hi" + "a cat" + "no")
    total = sum(float((one.mean * one.count).detach()) for one in alone)
    assert float((together.mean * together.count).detach()) == pytest.approx(total, rel=1e-4)


def test_an_untrained_reader_that_says_everything_alike_pays_for_all_alignments() -> None:
    reading = make_reading()
    with torch.no_grad():
        reading.layers[-1].weight.zero_()  # type: ignore[operator,union-attr]
        reading.layers[-1].bias.zero_()  # type: ignore[operator,union-attr]
    # 2 codes make 4 frames; "a" lies on 1 to 4 of them in one stretch: 10 alignments of 4 frames
    expected = 4 * math.log(1 + len(ALPHABET)) - math.log(10)
    assert float(reading(CODES[:1, :2], torch.tensor([2]), ["A"], 0).mean.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_text_too_long_for_its_codes_teaches_nothing() -> None:
    term = make_reading(frames_per_code=1)(CODES[:1], torch.tensor([12]), ["thirteen chars"], 0)
    assert float(term.mean.detach()) == 0.0 and int(term.count) == 14


def test_it_learns_to_read_and_its_gradient_moves_the_codes() -> None:
    reading, codes = make_reading(), CODES.clone().requires_grad_()
    lengths, texts = torch.tensor([12, 12, 12]), ["one", "two", "three"]
    optimizer = torch.optim.Adam(reading.parameters(), 2e-2)
    losses = []
    for _ in range(60):
        loss = reading(codes, lengths, texts, 0).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert codes.grad is not None and (codes.grad.abs().sum(-1) > 0).all()


def test_its_weight_is_that_of_the_step() -> None:
    reading = TextReading(3, Ramp(0.5, num_steps=4), channels=8)
    weights = [reading(CODES, torch.tensor([12, 12, 12]), ["a", "b", "c"], step).weight for step in range(5)]
    assert weights == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_all_normalised_text_can_be_written() -> None:
    assert set(normalize_text("".join(map(chr, range(0x2100))))) <= set(ALPHABET)


def test_a_reader_that_begins_late_is_refused() -> None:
    with pytest.raises(UserError, match="start_step of the text reading is 5; give 0"):
        TextReading(3, Ramp(0.1, start_step=5))
    with pytest.raises(UserError, match="channels is 0"):
        TextReading(3, Ramp(0.1), channels=0)

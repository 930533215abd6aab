"""The chunk grid: streamed equals whole for any pushes, windows are what they are said to be, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_modules.codec.neucodec import NeuCodec
from lightning_modules.codec.xcodec2 import Xcodec2
from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.base import Vocoder
from lightning_modules.vocoder.windowed import WindowedCodecVocoder
from tests.lightning_modules.codec.tiny import make_model

NEUCODEC, XCODEC2 = NeuCodec(make_model("neucodec")), Xcodec2(make_model("xcodec2"))


def make_tokens(length: int) -> Tensor:
    return torch.randint(0, 65_536, (length,), generator=torch.Generator().manual_seed(length))


def pushed(vocoder: Vocoder, tokens: Tensor, sizes: Sequence[int], end_apart: bool) -> Tensor:
    """Push the tokens in parts, and the end with the last of them or in a push of its own."""
    stream = vocoder.stream()
    parts = list(tokens.split(list(sizes))) + ([tokens[:0]] if end_apart or not sizes else [])
    return torch.cat([stream.push(part, last=index == len(parts) - 1) for index, part in enumerate(parts)])


@pytest.mark.parametrize("codec", [NEUCODEC, XCODEC2], ids=lambda codec: codec.name)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=7),
    st.booleans(),
    st.sampled_from([(25, 50, 5, 1), (1, 0, 0, 0), (3, 2, 4, 3), (8, 0, 8, 8)]),
)
def test_streamed_is_whole(codec: Any, sizes: list[int], end_apart: bool, grid: tuple[int, int, int, int]) -> None:
    vocoder, tokens = WindowedCodecVocoder(codec, *grid), make_tokens(sum(sizes))
    whole = vocoder(tokens)
    assert whole.shape == (len(tokens) * codec.token_format.samples_per_token,)
    assert torch.equal(pushed(vocoder, tokens, sizes, end_apart), whole)


class Ramps(nn.Module):
    """A decoder of 4 samples per token that shows its window: token, and how many tokens it was decoded with."""

    token_format = TokenFormat("ramps", 1000, 25, 100)
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[list[int]] = []

    def decode(self, tokens: Tensor) -> Tensor:
        self.windows.append(tokens[0].tolist())
        return (tokens + 1000.0 * len(self.windows)).repeat_interleave(4, dim=1)


def test_windows_and_the_fade_between_them() -> None:
    codec = Ramps()
    vocoder = WindowedCodecVocoder(codec, chunk_tokens=4, lookback_tokens=3, lookahead_tokens=2, overlap_tokens=1)
    waveform = vocoder(torch.arange(11)).view(11, 4)
    assert codec.windows == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10]]
    assert waveform[:, 3].tolist() == [1000, 1001, 1002, 1003, 1879, 2005, 2006, 2007, 2883, 3009, 3010]
    # the four samples of the first token of a chunk go from the window before to its own
    assert waveform[4].tolist() == [1004 + 1000 * share for share in (0.125, 0.375, 0.625, 0.875)]
    assert (vocoder.first_chunk_wait_s, vocoder.compute_factor) == (6 / 25, 9 / 4)


def test_samples_come_out_as_soon_as_their_window_is_there() -> None:
    stream = WindowedCodecVocoder(Ramps(), 4, 3, 2, 1).stream()
    emitted = [len(stream.push(torch.tensor([token]), last=token == 10)) for token in range(11)]
    assert emitted == [0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 12]


def test_a_window_around_all_tokens_is_the_decoder_itself() -> None:
    tokens = make_tokens(30)
    vocoder = WindowedCodecVocoder(NEUCODEC, chunk_tokens=40)
    assert torch.equal(vocoder(tokens), vocoder.decode_at_once(tokens))
    shorter = WindowedCodecVocoder(NEUCODEC, chunk_tokens=10, lookback_tokens=5)
    assert (shorter(tokens) - shorter.decode_at_once(tokens)).abs().max() > 1e-3
    assert not len(vocoder(tokens[:0])) and not len(vocoder.decode_at_once(tokens[:0]))


def test_it_says_what_it_takes_and_trains_nothing() -> None:
    vocoder = WindowedCodecVocoder(NeuCodec(make_model("neucodec")))
    assert (vocoder.codebook_size, vocoder.frame_rate_hz, vocoder.sample_rate) == (65_536, 50.0, 24_000)
    assert not any(parameter.requires_grad for parameter in vocoder.parameters())


class TooShort(Ramps):
    def decode(self, tokens: Tensor) -> Tensor:
        return super().decode(tokens)[:, :-1]


def test_stream_errors() -> None:
    stream = WindowedCodecVocoder(NEUCODEC).stream()
    with pytest.raises(UserError, match="one row"):
        stream.push(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(UserError, match=r"tokens must lie in 0..65535, got 3..65536"):
        stream.push(torch.tensor([3, 65_536]))
    stream.push(torch.tensor([1, 2]), last=True)
    with pytest.raises(UserError, match="has ended"):
        stream.push(torch.tensor([1]))
    with pytest.raises(UserError, match="TooShort decoded 3 tokens to samples of shape .1, 11. instead of .1, 12."):
        WindowedCodecVocoder(TooShort())(torch.arange(3))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"lookback_tokens": -1}, "lookback_tokens is -1"),
        ({"overlap_tokens": 6}, "overlap_tokens is 6; give a number from 0 to 5"),
        ({"chunk_tokens": 2, "overlap_tokens": 3}, "overlap_tokens is 3; give a number from 0 to 2"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WindowedCodecVocoder(Ramps(), **grid)

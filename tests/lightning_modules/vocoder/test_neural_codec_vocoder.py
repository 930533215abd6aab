"""The neural vocoder: the same samples to the last bit for pushes of any sizes, within the stated delay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.acoustics.vocos import Vocos
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.vocoder.neural_codec_vocoder import NeuralCodecVocoder


def make_vocoder(lookahead_tokens: int = 1, block_tokens: int = 3, lookahead_frames: int = 4) -> NeuralCodecVocoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = SpeechCodec(channels=(16, 16, 16), lookahead_tokens=lookahead_tokens)
        network = Vocos(channels=16, num_blocks=2, lookahead_frames=lookahead_frames)
    return NeuralCodecVocoder(codec, network, block_tokens)


VOCODERS = [make_vocoder(0), make_vocoder(1), make_vocoder(2, block_tokens=1), make_vocoder(1, 5, lookahead_frames=7)]


def random_tokens(count: int) -> torch.Tensor:
    return torch.randint(0, 1000, (count,), generator=torch.Generator().manual_seed(count))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(VOCODERS), st.lists(st.integers(0, 8), max_size=6), st.booleans())
def test_streamed_is_whole_to_the_last_bit(vocoder: NeuralCodecVocoder, sizes: list[int], end_apart: bool) -> None:
    tokens = random_tokens(sum(sizes))
    whole = vocoder(tokens)
    assert whole.shape == (640 * len(tokens),)
    stream = vocoder.stream()
    pushes = list(tokens.split(sizes)) + ([tokens[:0]] if end_apart or not sizes else [])
    pieces = [stream.push(push, last=index == len(pushes) - 1) for index, push in enumerate(pushes)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("vocoder", VOCODERS, ids=["no look-ahead", "default", "single tokens", "long look-ahead"])
def test_blocks_give_what_codec_and_network_give_for_the_whole(vocoder: NeuralCodecVocoder) -> None:
    tokens = random_tokens(31)
    with torch.no_grad():
        expected = vocoder.network(vocoder.codec.decode_mel(tokens[None]))[0]  # type: ignore[operator]
    torch.testing.assert_close(vocoder(tokens), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("vocoder", VOCODERS, ids=["no look-ahead", "default", "single tokens", "long look-ahead"])
def test_samples_come_out_within_the_stated_delay(vocoder: NeuralCodecVocoder) -> None:
    stream, num_tokens = vocoder.stream(), 15 + vocoder.codec.lookahead_tokens  # fills blocks of 1, 3 and 5
    emitted = sum(len(stream.push(torch.tensor([7]))) for _ in range(num_tokens))
    assert num_tokens * 640 - emitted == pytest.approx(vocoder.delay_s * 16_000)


def test_what_a_stream_keeps_does_not_grow() -> None:
    stream = make_vocoder().stream()
    for _ in range(100):
        stream.push(torch.tensor([5, 6]))
        assert len(stream.tokens) <= 8 + 3 + 1  # type: ignore[attr-defined]


def test_autocast_changes_nothing() -> None:
    vocoder, tokens = make_vocoder(), random_tokens(12)
    with torch.autocast("cpu", torch.bfloat16):
        waveform = vocoder(tokens)
    assert torch.equal(waveform, vocoder(tokens))


def test_its_parts_are_frozen_and_its_tokens_are_the_codecs() -> None:
    vocoder = make_vocoder()
    assert not any(part.training for part in vocoder.children())
    assert vocoder.codebook_size == 1000 and vocoder.frame_rate_hz == 25
    assert not any(parameter.requires_grad for parameter in vocoder.parameters())


def test_errors() -> None:
    stream = make_vocoder().stream()
    with pytest.raises(UserError, match="one row"):
        stream.push(torch.zeros(1, 2, dtype=torch.long))
    stream.push(torch.tensor([1, 2]), last=True)
    with pytest.raises(UserError, match="has ended"):
        stream.push(torch.tensor([1]))
    with pytest.raises(UserError, match="block_tokens is 0"):
        make_vocoder(block_tokens=0)
    network = Vocos(channels=8, num_blocks=1)
    network.hop_samples = 200
    with pytest.raises(UserError, match="160 samples apart, those of the network 200"):
        NeuralCodecVocoder(SpeechCodec(channels=(8, 8, 8)), network)

"""The vocoder: streamed equals whole, lengths are exact, and Griffin-Lim continues the samples before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.acoustics.log_mel import LogMel
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from lightning_modules.vocoder.griffin_lim import GriffinLim


def make_vocoder(lookahead_tokens: int = 1, **settings) -> CodecVocoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = SpeechCodec(channels=(16, 16, 16), lookahead_tokens=lookahead_tokens)
    return CodecVocoder(codec, num_iterations=3, **settings)


VOCODERS = [make_vocoder(lookahead) for lookahead in range(3)]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VOCODERS), st.lists(st.integers(0, 8), max_size=6), st.booleans())
def test_streamed_is_whole(vocoder, sizes, end_apart):
    tokens = torch.randint(0, 1000, (sum(sizes),), generator=torch.Generator().manual_seed(0))
    whole = vocoder(tokens)
    assert whole.shape == (640 * len(tokens),)
    stream = vocoder.stream()
    pushes = list(tokens.split(sizes)) + ([tokens[:0]] if end_apart or not sizes else [])
    pieces = [stream.push(push, last=index == len(pushes) - 1) for index, push in enumerate(pushes)]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=0)


def test_samples_come_out_within_the_stated_delay():
    vocoder = make_vocoder(block_tokens=3)
    stream = vocoder.stream()
    emitted = sum(len(stream.push(torch.tensor([7]))) for _ in range(16))
    assert emitted == 15 * 640 - 2 * 160
    assert 16 * 640 - emitted == vocoder.delay_s * 16_000


def test_autocast_changes_nothing():
    vocoder, tokens = make_vocoder(), torch.arange(12)
    with torch.autocast("cpu", torch.bfloat16):
        waveform = vocoder(tokens)
    torch.testing.assert_close(waveform, vocoder(tokens), atol=1e-6, rtol=0)


def test_stream_errors():
    stream = make_vocoder().stream()
    with pytest.raises(ValueError, match="one row"):
        stream.push(torch.zeros(1, 2, dtype=torch.long))
    stream.push(torch.tensor([1, 2]), last=True)
    with pytest.raises(ValueError, match="has ended"):
        stream.push(torch.tensor([1]))


def test_a_window_that_the_hop_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="the window in samples is 640, which hop_samples 150 does not divide"):
        GriffinLim(torch.hann_window(640), LogMel().filters, 150)


def make_griffin_lim() -> tuple[GriffinLim, LogMel]:
    log_mel = LogMel()
    return GriffinLim(log_mel.window, log_mel.filters, 160, num_iterations=30), log_mel


def harmonics(samples: int) -> torch.Tensor:
    time = torch.arange(samples) / 16_000
    return sum(0.1 * torch.sin(2 * torch.pi * 150 * k * time) for k in range(1, 12))


def test_griffin_lim_reaches_the_wanted_mel():
    griffin_lim, log_mel = make_griffin_lim()
    wanted = log_mel.filters @ log_mel.magnitude(harmonics(4800)[None])[0]
    size = 29 * 160 + 640
    waveform = griffin_lim(wanted, torch.zeros(size), torch.zeros(size))
    got = log_mel.filters @ log_mel.magnitude(waveform[None, 240:-240])[0]
    inner = slice(4, -4)
    assert (got - wanted)[:, inner].norm() < 0.2 * wanted[:, inner].norm()


def test_griffin_lim_keeps_what_is_known():
    griffin_lim, log_mel = make_griffin_lim()
    speech = harmonics(4800)
    wanted = log_mel.filters @ log_mel.magnitude(speech[None])[0]
    known = torch.nn.functional.pad(speech, (240, 240))
    trust = (torch.arange(len(known)) < 2640).float()
    waveform = griffin_lim(wanted, known, trust)
    torch.testing.assert_close(waveform[:2640], known[:2640])
    # a stationary tone continues without a jump
    step = (waveform[2640] - waveform[2639]).abs()
    assert step < 2 * (known[1:] - known[:-1]).abs().max()


def test_linear_magnitude_explains_the_mel():
    griffin_lim, log_mel = make_griffin_lim()
    wanted = log_mel.filters @ log_mel.magnitude(harmonics(3200)[None])[0]
    linear = griffin_lim.linear_magnitude(wanted) * griffin_lim.magnitude_scale
    assert linear.min() >= 0
    assert (log_mel.filters @ linear - wanted).norm() < 0.1 * wanted.norm()

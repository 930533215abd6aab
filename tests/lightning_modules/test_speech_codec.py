"""The codec: token counts, locality, padding, streaming decoder, and that it learns."""

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.speech_codec import ENCODER_REACH_TOKENS, SpeechCodec


def make_codec(**settings) -> SpeechCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = SpeechCodec(channels=(16, 16, 24), **settings).eval()
    spread_tokens(codec)
    return codec


@torch.no_grad()
def spread_tokens(codec: SpeechCodec) -> None:
    """Scales the last layer so that an untrained encoder does not give one token to all sounds."""
    last = codec.encoder.layers[-1]
    coordinates = codec.encoder(codec.log_mel(speechlike(4, 16_000)))
    mean, spread = coordinates.mean((0, 2)), coordinates.std((0, 2))
    last.bias.copy_((last.bias - mean) / spread)
    last.weight.div_(spread[:, None, None])


def speechlike(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    pitch = 100 + 200 * torch.rand(rows, 1, generator=generator)
    envelope = torch.rand(rows, samples // 1600 + 1, generator=generator).repeat_interleave(1600, 1)[:, :samples]
    return 0.3 * envelope * torch.sin(2 * torch.pi * pitch * time) + 0.01 * torch.randn(
        rows, samples, generator=generator
    )


CODEC = make_codec()


def make_batch(seed: int = 0) -> SpokenBatch:
    return SpokenBatch(
        ["a", "b"], ["x", "y"], reply=speechlike(2, 12_000, seed), reply_lengths=torch.tensor([12_000, 9_000])
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=4))
def test_batched_row_is_the_row_alone(lengths):
    waveform = speechlike(len(lengths), max(lengths))
    tokens, token_lengths = CODEC.encode(waveform, torch.tensor(lengths))
    assert token_lengths.tolist() == [-(-n // 640) for n in lengths]
    for row, n, count in zip(waveform, lengths, token_lengths, strict=True):
        alone, _ = CODEC.encode(row[None, :n])
        index = int((row == waveform).all(1).nonzero()[0])
        assert torch.equal(alone[0], tokens[index, :count])
        assert not tokens[index, count:].any()


def test_tokens_are_local():
    waveform = speechlike(1, 640 * 30)
    changed = waveform.clone()
    changed[:, 640 * 15 : 640 * 16] = 0.0
    before, after = CODEC.encode(waveform)[0][0], CODEC.encode(changed)[0][0]
    different = (before != after).nonzero()[:, 0].tolist()
    assert different, "a token hears its own samples"
    # one more token, by the analysis window
    assert all(15 - ENCODER_REACH_TOKENS - 1 <= index <= 15 + ENCODER_REACH_TOKENS + 1 for index in different)


@pytest.mark.parametrize("lookahead_tokens", [0, 1, 2])
def test_mel_depends_on_the_stated_context_only(lookahead_tokens):
    codec = make_codec(lookahead_tokens=lookahead_tokens)
    tokens = torch.randint(0, codec.codebook_size, (1, 40), generator=torch.Generator().manual_seed(1))
    whole = codec.decode_mel(tokens)
    assert whole.shape == (1, 80, 160)
    start, end = 20, 24
    window = tokens[:, start - codec.left_context_tokens : end + lookahead_tokens]
    part = codec.decode_mel(window)[:, :, 4 * codec.left_context_tokens :][:, :, : 4 * (end - start)]
    torch.testing.assert_close(part, whole[:, :, 4 * start : 4 * end], atol=1e-5, rtol=1e-5)

    later = tokens.clone()
    later[:, end + lookahead_tokens] = (later[:, end + lookahead_tokens] + 1) % codec.codebook_size
    torch.testing.assert_close(codec.decode_mel(later)[:, :, : 4 * end], whole[:, :, : 4 * end], atol=1e-5, rtol=1e-5)


def test_padded_tokens_do_not_sound():
    tokens = torch.randint(0, 1000, (2, 10), generator=torch.Generator().manual_seed(1))
    batched = CODEC.decode_mel(tokens, torch.tensor([10, 6]))
    torch.testing.assert_close(batched[1:, :, :24], CODEC.decode_mel(tokens[1:, :6]), atol=1e-5, rtol=1e-5)


def test_crops_are_a_pure_function_of_seed_and_step():
    reply, lengths = speechlike(4, 40_000), torch.tensor([40_000, 30_000, 25_601, 100])
    crops = make_codec(seed=3)._crops(reply, lengths)
    assert crops.shape == (4, 25_600 + 4 * 640)
    torch.testing.assert_close(crops, make_codec(seed=3)._crops(reply, lengths))
    assert not torch.equal(crops, make_codec(seed=4)._crops(reply, lengths))


def test_training_lowers_the_validation_error(tmp_path):
    codec = SpeechCodec(channels=(16, 16, 24), crop_s=0.4, learning_rate=5e-3, warmup_steps=5)
    loader = DataLoader([make_batch()], batch_size=None)
    trainer = L.Trainer(
        max_steps=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    first = trainer.validate(codec, loader, verbose=False)[0]["val/mel_l1"]
    trainer.fit(codec, DataLoader([make_batch() for _ in range(30)], batch_size=None), loader)
    last = trainer.validate(codec, loader, verbose=False)[0]["val/mel_l1"]
    assert last < 0.6 * first
    assert codec.reconstruct(make_batch().reply).shape == (2, 80, 4 * 19)


def test_errors_say_what_to_mend():
    with pytest.raises(ValueError, match="at least 3 levels"):
        SpeechCodec(levels=(8, 2))
    with pytest.raises(ValueError, match="three positive widths"):
        SpeechCodec(channels=(16, 16))
    with pytest.raises(ValueError, match="lookahead_tokens"):
        SpeechCodec(lookahead_tokens=7)
    with pytest.raises(ValueError, match="strip BOS"):
        CODEC.decode_mel(torch.tensor([[1000]]))
    with pytest.raises(ValueError, match="batch, samples"):
        CODEC.encode(torch.zeros(100))
    with pytest.raises(ValueError, match="add 'reply'"):
        CODEC.training_step(SpokenBatch(["a"], ["x"]), 0)

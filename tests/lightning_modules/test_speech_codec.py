"""The codec: tokens depend on their own surroundings only, the decoder on the stated context, and it learns."""

from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec

TOKEN = 640  # samples
REACH = 1_600  # samples on each side of a token that it depends on: 100 ms


def make_codec(**arguments: object) -> SpeechCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = SpeechCodec(channels=(16, 16, 24), **arguments).eval()  # type: ignore[arg-type]
    spread_tokens(codec)
    return codec


@torch.no_grad()
def spread_tokens(codec: SpeechCodec) -> None:
    """Scale the last layer so that an untrained encoder does not give one token to all sounds."""
    last = codec.encoder.layers[-1]
    coordinates = codec.encoder(codec.log_mel(speechlike(4, 16_000)))
    mean, spread = coordinates.mean((0, 2)), coordinates.std((0, 2))
    last.bias.copy_((last.bias - mean) / spread)
    last.weight.div_(spread[:, None, None])


def speechlike(rows: int, samples: int, seed: int = 0) -> Tensor:
    """Make tones whose level changes every 0.1 s, with some noise: ``(rows, samples)``."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    pitch = 100 + 200 * torch.rand(rows, 1, generator=generator)
    envelope = torch.rand(rows, samples // 1600 + 1, generator=generator).repeat_interleave(1600, 1)[:, :samples]
    noise = 0.01 * torch.randn(rows, samples, generator=generator)
    return 0.3 * envelope * torch.sin(2 * torch.pi * pitch * time) + noise


CODEC = make_codec()


def make_batch(seed: int = 0) -> SpokenBatch:
    lengths = torch.tensor([12_000, 9_000])
    return SpokenBatch(["a", "b"], ["x", "y"], reply=speechlike(2, 12_000, seed), reply_lengths=lengths)


def random_tokens(rows: int, count: int) -> Tensor:
    return torch.randint(0, CODEC.codebook_size, (rows, count), generator=torch.Generator().manual_seed(1))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=4), extra=st.integers(0, 2000))
def test_a_token_depends_on_neither_padding_nor_neighbours_in_the_batch(lengths: list[int], extra: int) -> None:
    waveform = speechlike(len(lengths), max(lengths) + extra)  # noise beyond the ends
    tokens, token_lengths = CODEC.encode(waveform, torch.tensor(lengths))
    assert token_lengths.tolist() == [-(-length // TOKEN) for length in lengths]
    for row, (length, count) in enumerate(zip(lengths, token_lengths.tolist(), strict=True)):
        alone, _ = CODEC.encode(waveform[row : row + 1, :length])
        assert torch.equal(alone[0], tokens[row, :count])
        assert not tokens[row, count:].any()


@pytest.mark.parametrize("place", [4, 9, 15])
def test_a_token_depends_on_100_ms_on_each_side_and_no_more(place: int) -> None:
    waveform = speechlike(1, TOKEN * 20)
    expected = CODEC.encode(waveform)[0][0]
    far = 0.5 * torch.randn(waveform.shape, generator=torch.Generator().manual_seed(2))
    far[:, place * TOKEN - REACH : (place + 1) * TOKEN + REACH] = 0.0
    tokens = CODEC.encode(waveform + far)[0][0]
    assert tokens[place] == expected[place]
    assert (tokens != expected).any(), "the noise is heard elsewhere"
    near = torch.zeros_like(waveform)
    near[:, place * TOKEN : (place + 1) * TOKEN] = 0.5
    assert CODEC.encode(waveform + near)[0][0, place] != expected[place], "a token depends on its own samples"


@pytest.mark.parametrize("shift", [1, 3])
def test_tokens_move_by_one_when_audio_moves_by_640_samples(shift: int) -> None:
    waveform = speechlike(2, TOKEN * 12)
    moved = torch.nn.functional.pad(waveform, (shift * TOKEN, 0))
    tokens, shifted = CODEC.encode(waveform)[0], CODEC.encode(moved)[0]
    assert torch.equal(shifted[:, shift:], tokens)
    assert len(tokens.unique()) > 5, "tokens that are all alike would move anywhere"


def test_tokens_do_not_depend_on_the_precision_of_the_caller() -> None:
    waveform = speechlike(2, TOKEN * 6)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, lengths = CODEC.encode(waveform)
        mel = CODEC.decode_mel(tokens, lengths)
    assert torch.equal(tokens, CODEC.encode(waveform)[0])
    torch.testing.assert_close(mel, CODEC.decode_mel(tokens, lengths))


@pytest.mark.parametrize("lookahead_tokens", [0, 1, 2, 6])
def test_a_mel_frame_depends_on_exactly_the_stated_context(lookahead_tokens: int) -> None:
    codec = make_codec(lookahead_tokens=lookahead_tokens)
    codes = codec.quantizer.indices_to_codes(random_tokens(1, 40)).transpose(1, 2).requires_grad_()
    place = 20
    codec.decoder(codes)[:, :, 4 * place : 4 * (place + 1)].square().sum().backward()
    (heard,) = codes.grad.abs().sum((0, 1)).nonzero(as_tuple=True)  # type: ignore[union-attr]
    assert (int(heard.min()), int(heard.max())) == (place - codec.left_context_tokens, place + lookahead_tokens)


@pytest.mark.parametrize("lookahead_tokens", [0, 1, 2])
def test_a_window_of_the_stated_context_decodes_as_the_whole(lookahead_tokens: int) -> None:
    codec = make_codec(lookahead_tokens=lookahead_tokens)
    tokens, start, end = random_tokens(1, 40), 20, 24
    window = tokens[:, start - codec.left_context_tokens : end + lookahead_tokens]
    part = codec.decode_mel(window)[:, :, 4 * codec.left_context_tokens :][:, :, : 4 * (end - start)]
    whole = codec.decode_mel(tokens)[:, :, 4 * start : 4 * end]
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)


def test_padded_tokens_do_not_sound() -> None:
    tokens = random_tokens(2, 10)
    batched = CODEC.decode_mel(tokens, torch.tensor([10, 6]))
    torch.testing.assert_close(batched[1:, :, :24], CODEC.decode_mel(tokens[1:, :6]), atol=1e-5, rtol=1e-5)


def test_crops_are_pieces_of_the_reply_and_a_pure_function_of_seed_and_step() -> None:
    lengths = torch.tensor([40_000, 30_000, 25_601, 100])
    reply = torch.arange(1.0, 40_001.0).repeat(4, 1) * (torch.arange(40_000) < lengths[:, None])
    crops = make_codec(seed=3)._crops(reply, lengths)
    for crop, length in zip(crops, lengths.tolist(), strict=True):
        inside = crop[crop > 0]
        assert torch.equal(inside, torch.arange(inside[0], inside[0] + len(inside)))
        assert inside[-1] <= length and len(inside) >= min(length, len(crop) - 2 * 3_200)
    assert torch.equal(crops, make_codec(seed=3)._crops(reply, lengths))
    assert not torch.equal(crops, make_codec(seed=4)._crops(reply, lengths))


def test_a_fitted_codec_restores_speech_better_than_silence_or_a_constant(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = SpeechCodec(channels=(16, 16, 24), crop_s=0.4, learning_rate=5e-3, warmup_steps=5)
    batch = make_batch()
    batch.reply *= torch.arange(12_000) // 2_000 % 2  # bursts of an eighth of a second
    loader = DataLoader([batch], batch_size=None)
    trainer = L.Trainer(
        max_steps=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(codec, DataLoader([batch] * 30, batch_size=None), loader)
    error = float(trainer.callback_metrics["val/mel_l1"])
    assert batch.reply is not None and batch.reply_lengths is not None
    spoken = [codec.log_mel(row[None, :n]) for row, n in zip(batch.reply, batch.reply_lengths.tolist(), strict=True)]
    frames = torch.cat([mel[0] for mel in spoken], dim=1)
    of_silence = float((frames - codec.log_mel(torch.zeros(1, 160))[0]).abs().mean())
    of_a_constant = float((frames - frames.median(dim=1, keepdim=True).values).abs().mean())
    assert error < 0.6 * min(of_silence, of_a_constant), (error, of_silence, of_a_constant)
    # The metric is the error of decode(encode(x)) over the rows' own frames, a token being 4 of them.
    rows = zip(batch.reply, batch.reply_lengths.tolist(), strict=True)
    with torch.no_grad():
        restored = [codec.decode_mel(*codec.encode(row[None, :n])) for row, n in rows]
    padded = [
        codec.log_mel(torch.nn.functional.pad(row[None, :n], (0, -n % TOKEN)))
        for row, n in zip(batch.reply, batch.reply_lengths.tolist(), strict=True)
    ]
    errors = [(one - mel).abs().mean(1).flatten() for one, mel in zip(restored, padded, strict=True)]
    assert error == pytest.approx(float(torch.cat(errors).mean()), rel=1e-3)


def test_data_without_replies_is_refused_up_front() -> None:
    CODEC.check_data({"train": ["reply", "query"], "validation": ["reply"]})
    with pytest.raises(UserError, match="validation batches lack; add 'reply' to the data module's fields"):
        CODEC.check_data({"train": ["reply"], "validation": ["query"]})


def test_wrong_inputs_are_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match="strip BOS"):
        CODEC.decode_mel(torch.tensor([[CODEC.codebook_size]]))
    with pytest.raises(UserError, match="batch, samples"):
        CODEC.encode(torch.zeros(100))
    with pytest.raises(UserError, match="add 'reply'"):
        CODEC.training_step(SpokenBatch(["a"], ["x"]), 0)

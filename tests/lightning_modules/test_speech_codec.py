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
from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.codec.objectives.shift_tolerance import ShiftTolerance
from lightning_modules.codec.objectives.text_reading import TextReading
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec

TOKEN = 640  # samples
TEXT, SHIFT = Ramp(0.1, num_steps=3), Ramp(0.1, start_step=1, num_steps=2)
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

    def draw(seed: int) -> Tensor:
        codec = make_codec(seed=seed)
        return codec._crops(reply, codec._crop_starts(lengths))

    crops = draw(seed=3)
    for crop, length in zip(crops, lengths.tolist(), strict=True):
        inside = crop[crop > 0]
        assert torch.equal(inside, torch.arange(inside[0], inside[0] + len(inside)))
        assert inside[-1] <= length and len(inside) >= min(length, len(crop) - 2 * 3_200)
    assert torch.equal(crops, draw(seed=3))
    assert not torch.equal(crops, draw(seed=4))


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


def make_guided(seed: int = 0, text: Ramp = TEXT, shift: Ramp = SHIFT) -> SpeechCodec:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reading = TextReading(4, text, channels=8)
    codec = make_codec(crop_s=0.4, text_reading=reading, shift_tolerance=ShiftTolerance(shift), seed=seed)
    return codec.train()


def fit(
    codec: SpeechCodec, folder: Path, max_steps: int, checkpoint: Path | None = None, stop_after: int = 99
) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[StopAfter(stop_after)],
    )  # fmt: skip
    batches = DataLoader([make_batch()] * 2, batch_size=None)  # the same ones, so that no loader has to resume
    trainer.fit(codec, batches, DataLoader([make_batch()], batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return trainer


class StopAfter(L.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        trainer.callback_metrics["loss"] = loss.detach().clone()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:  # type: ignore[override]
        trainer.should_stop = trainer.global_step >= self.steps


def test_objectives_whose_weight_is_nothing_change_nothing(tmp_path: Path) -> None:
    plain, guided = make_codec(crop_s=0.4).train(), make_guided(text=Ramp(0.0), shift=Ramp(0.0))
    for codec in (plain, guided):
        fit(codec, tmp_path, 3)
    weights = guided.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


def test_the_loss_is_the_restoration_and_what_the_objectives_weigh(tmp_path: Path) -> None:
    metrics = fit(make_guided(text=Ramp(0.2), shift=Ramp(0.3)), tmp_path, 1).callback_metrics
    parts = [float(metrics[name]) for name in ("train/loss", "train/text_reading", "train/shift_tolerance", "loss")]
    assert min(parts) > 0
    assert parts[3] == pytest.approx(parts[0] + 0.2 * parts[1] + 0.3 * parts[2], rel=1e-5)


def test_objectives_look_at_no_more_rows_than_they_are_allowed(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reading = TextReading(4, Ramp(1.0), channels=8, max_rows=1)
    codec = make_codec(crop_s=0.4, text_reading=reading, shift_tolerance=ShiftTolerance(Ramp(1.0), max_rows=1)).train()
    seen: list[int] = []
    reading.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    metrics = fit(codec, tmp_path, 1).callback_metrics
    assert seen == [1] and float(metrics["train/shift_tolerance"]) > 0


def test_a_resumed_training_of_objectives_equals_one_that_never_stopped(tmp_path: Path) -> None:
    whole, first, rest = make_guided(), make_guided(), make_guided()
    fit(whole, tmp_path, 4)
    fit(first, tmp_path, 4, stop_after=2).save_checkpoint(tmp_path / "half.ckpt")
    assert any(name.startswith("text_reading.") for name in first.state_dict())
    fit(rest, tmp_path, 4, tmp_path / "half.ckpt")
    weights = rest.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("shift_ms", [-20.0, 3.0, 17.5])
def test_codes_that_ignore_where_speech_begins_pay_nothing_for_a_move(shift_ms: float) -> None:
    codec, reply = make_guided(), speechlike(2, 12_000)
    shift = torch.full((2,), round(16 * shift_ms))
    starts = codec._crop_starts(torch.tensor([12_000, 12_000]))

    def cost() -> float:
        codes = [codec._quantize(codec.log_mel(codec._crops(reply, one)))[0] for one in (starts, starts + shift)]
        return float(ShiftTolerance(Ramp(1.0))(*codes, 0).mean.detach())

    assert cost() > 0
    with torch.no_grad():
        codec.encoder.layers[-1].weight.zero_()  # type: ignore[operator,union-attr]
    assert cost() == 0.0


def test_a_codec_loaded_for_use_has_no_reader_and_speaks_the_same_tokens() -> None:
    trained, loaded = make_guided().eval(), make_guided(seed=5)
    checkpoint = {"state_dict": dict(trained.state_dict())}
    loaded.on_load_checkpoint(checkpoint)
    assert loaded.text_reading is None and set(loaded.state_dict()) == set(CODEC.state_dict())
    loaded.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(loaded.eval().encode(speechlike(2, 8_000))[0], trained.encode(speechlike(2, 8_000))[0])


def test_a_checkpoint_from_before_there_were_objectives_still_loads() -> None:
    old = {"state_dict": dict(CODEC.state_dict())}
    fresh = make_codec(seed=7)
    fresh.on_load_checkpoint(old)
    fresh.load_state_dict(old["state_dict"])
    assert torch.equal(fresh.encode(speechlike(1, 8_000))[0], CODEC.encode(speechlike(1, 8_000))[0])


def test_a_reader_of_other_codes_is_refused() -> None:
    with pytest.raises(UserError, match="num_coordinates of text_reading is 3; give 4"):
        SpeechCodec(text_reading=TextReading(3, TEXT))


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

"""The recognizer: it overfits a batch, padding changes nothing, and silence is no word."""

from pathlib import Path
from typing import Any

import librosa
import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.acoustics.log_mel import NUM_MELS, WINDOW_SAMPLES, LogMel
from lightning_modules.acoustics.vocos import band_centres_hz
from lightning_modules.errors import UserError
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.training.seeding import derive_seed

TEXTS = ["Go home!", "stop"]


def make_recognizer(**settings) -> SpeechRecognizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SpeechRecognizer(ConvSpeechEncoder(32, dilations=(1, 2)), **settings).eval()


def make_batch() -> SpokenBatch:
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(12_800) / 16_000
    sweep = torch.stack([torch.sin(2 * torch.pi * (300 + 3000 * time) * time), torch.sin(6000 * time * (1 - time))])
    speech = 0.3 * sweep + 0.01 * torch.randn(2, 12_800, generator=generator)
    lengths = torch.tensor([12_800, 9_000])
    return SpokenBatch(
        ["a", "b"], TEXTS, TEXTS[::-1], query=speech, query_lengths=lengths, reply=speech, reply_lengths=lengths
    )


def make_trainer(tmp_path, steps: int) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def test_it_overfits_a_batch_and_then_transcribes_it(tmp_path: Path) -> None:
    recognizer = make_recognizer(learning_rate=1e-2, warmup_steps=5).train()
    trainer = make_trainer(tmp_path, 120)
    batch = make_batch()
    validation = DataLoader([batch], batch_size=None)
    trainer.fit(recognizer, DataLoader([batch] * 120, batch_size=None), validation)
    recognizer.eval()
    assert recognizer.transcribe(batch.reply, batch.reply_lengths) == ["go home", "stop"]
    metrics = trainer.validate(recognizer, validation, verbose=False)[0]
    assert metrics["val/wer"] == metrics["val/wer_macro"] == 0


def test_a_batched_row_equals_the_single_row() -> None:
    recognizer, batch = make_recognizer(), make_batch()
    reply = batch.reply.clone()
    reply[1, 9_000:] = 0.5  # beyond its length
    log_probs, frame_lengths = recognizer(reply, batch.reply_lengths)
    assert frame_lengths.tolist() == [27, 19] and log_probs.shape[1] == 27
    alone, _ = recognizer(batch.reply[1:, :9_000], torch.tensor([9_000]))
    torch.testing.assert_close(log_probs[1:, :19], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"dilations": (1, 2), "stride": 2}, {"kernel_size": 3, "stride": 1}])
def test_a_frame_depends_on_its_stated_reach_and_no_more(settings: dict[str, Any]) -> None:
    """The gradient of a frame is zero outside its reach and not zero at both ends of it."""
    torch.manual_seed(0)
    encoder = ConvSpeechEncoder(8, **settings)
    waveform = (0.1 * torch.randn(1, 32_000)).requires_grad_()
    frames, _ = encoder(waveform, torch.tensor([32_000]))
    frame = frames.shape[1] // 2
    (frames[0, frame] * torch.randn(frames.shape[2])).sum().backward()
    (heard,) = waveform.grad.abs().sum(0).nonzero(as_tuple=True)
    window_s = (640 - 160) / 2 / 16_000  # of the log-mel, before and after a frame's own 10 ms
    start_s, end_s = frame * encoder.stride / 100, (frame + 1) * encoder.stride / 100
    before_s, after_s = start_s - float(heard.min()) / 16_000, float(heard.max()) / 16_000 - end_s
    for reach_s in (before_s, after_s):
        assert reach_s <= encoder.reach_s + window_s
    assert max(before_s, after_s) > encoder.reach_s - 2 * encoder.stride / 100, "the stated reach is not too large"


def test_transcribe_takes_lists_and_empty_rows() -> None:
    recognizer, batch = make_recognizer(), make_batch()
    rows = [batch.reply[0], torch.zeros(0), batch.reply[1, :9_000]]
    texts = recognizer.transcribe(rows)
    assert texts[1] == ""
    assert [texts[0], texts[2]] == recognizer.transcribe(batch.reply, batch.reply_lengths)
    assert recognizer.transcribe([]) == []
    assert recognizer.transcribe(torch.zeros(2, 0)) == ["", ""]


def test_training_is_augmented_and_validation_is_not(tmp_path: Path) -> None:
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, waveform, generator):
            seen.append(generator.initial_seed())
            return waveform

    recognizer = make_recognizer(augmentation=Recorder(), seed=5).train()
    loader = DataLoader([make_batch()] * 2, batch_size=None)
    make_trainer(tmp_path, 2).fit(recognizer, loader, loader)
    assert seen == [derive_seed(5, 0, 0), derive_seed(5, 1, 0)]


def test_the_source_picks_speech_and_text() -> None:
    batch = make_batch()
    assert make_recognizer()._pairs(batch)[2] == TEXTS
    assert make_recognizer(source="query")._pairs(batch)[2] == TEXTS[::-1]
    with pytest.raises(UserError, match="'query' and 'transcript'"):
        make_recognizer(source="query")._pairs(SpokenBatch(["a"], ["x"]))


def test_data_without_the_source_is_refused_up_front() -> None:
    make_recognizer().check_data({"train": ["reply"], "validation": ["reply", "query"]})
    with pytest.raises(UserError, match=r"needs \['reply'\], which test batches lack"):
        make_recognizer().check_data({"train": ["reply"], "test": ["query"]})
    with pytest.raises(UserError, match=r"needs \['transcript'\], which train batches lack"):
        make_recognizer(source="query").check_data({"train": ["query"]})


def test_validation_weighs_characters_and_words_and_not_batches(tmp_path: Path) -> None:
    """One batch of two rows or two batches of one row: the same loss and the same rates."""
    recognizer, batch = make_recognizer(), make_batch()
    rows = [
        SpokenBatch(
            [one], [TEXTS[row]], reply=batch.reply[row : row + 1, :n], reply_lengths=batch.reply_lengths[row, None]
        )
        for row, (one, n) in enumerate(zip(batch.ids, batch.reply_lengths.tolist(), strict=True))
    ]
    metrics = [
        make_trainer(tmp_path, 1).validate(recognizer, DataLoader(batches, batch_size=None), verbose=False)[0]
        for batches in ([batch], rows)
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5) and metrics[0]["val/loss"] > 0


def test_it_states_the_rate_of_the_speech_that_it_takes() -> None:
    """A tone of 1 kHz at the stated rate is strongest in the mel band around 1 kHz."""
    recognizer = make_recognizer()
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(recognizer.sample_rate) / recognizer.sample_rate)
    band = int(recognizer.encoder.log_mel(tone[None])[0].mean(1).argmax())
    edges_hz = librosa.mel_frequencies(NUM_MELS + 2, fmin=0.0, fmax=recognizer.sample_rate / 2)
    assert edges_hz[band] < 1000 < edges_hz[band + 2]


def test_bands_are_those_of_librosa_bit_by_bit() -> None:
    """Codecs were trained on librosa's bands, which take seconds to import; these are computed elsewhere."""
    bands = librosa.filters.mel(sr=16_000, n_fft=WINDOW_SAMPLES, n_mels=NUM_MELS, fmin=0.0, norm=None)
    assert torch.equal(LogMel().filters, torch.from_numpy(bands).float())
    centres_hz = torch.from_numpy(librosa.mel_frequencies(NUM_MELS + 2, fmin=0.0, fmax=8_000.0)[1:-1]).float()
    assert torch.equal(band_centres_hz(), centres_hz)


def test_errors_say_how_to_fix_them() -> None:
    with pytest.raises(ValueError, match=r"\['7'\].*extend `characters`"):
        make_recognizer(characters=" abc").encode_text("a 7")
    with pytest.raises(ValueError, match="batch, samples"):
        make_recognizer().transcribe(torch.zeros(100))

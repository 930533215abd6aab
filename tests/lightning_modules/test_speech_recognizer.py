"""The recognizer: it overfits a batch, padding cannot be heard, and silence is no word."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
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


def test_overfits_a_batch_and_then_hears_it(tmp_path):
    recognizer = make_recognizer(learning_rate=1e-2, warmup_steps=5).train()
    trainer = make_trainer(tmp_path, 120)
    batch = make_batch()
    validation = DataLoader([batch], batch_size=None)
    trainer.fit(recognizer, DataLoader([batch] * 120, batch_size=None), validation)
    recognizer.eval()
    assert recognizer.transcribe(batch.reply, batch.reply_lengths) == ["go home", "stop"]
    metrics = trainer.validate(recognizer, validation, verbose=False)[0]
    assert metrics["val/wer"] == metrics["val/wer_macro"] == 0


def test_batched_row_is_the_row_alone():
    recognizer, batch = make_recognizer(), make_batch()
    reply = batch.reply.clone()
    reply[1, 9_000:] = 0.5  # beyond its length: must not be heard
    log_probs, frame_lengths = recognizer(reply, batch.reply_lengths)
    assert frame_lengths.tolist() == [27, 19] and log_probs.shape[1] == 27
    alone, _ = recognizer(batch.reply[1:, :9_000], torch.tensor([9_000]))
    torch.testing.assert_close(log_probs[1:, :19], alone, atol=1e-4, rtol=1e-4)


def test_encoder_hears_its_reach_only():
    encoder = make_recognizer().encoder
    waveform = make_batch().reply[:1]
    changed = waveform.clone()
    changed[:, 6400:] = 0.0
    length = torch.tensor([12_800])
    same = (encoder(waveform, length)[0] - encoder(changed, length)[0]).abs().amax((0, 2)) < 1e-5
    last_unchanged = 40 - round(encoder.reach_s * 100) - 2
    assert same[: last_unchanged // encoder.stride].all() and not same[-1]


def test_transcribe_takes_lists_and_silent_rows():
    recognizer, batch = make_recognizer(), make_batch()
    rows = [batch.reply[0], torch.zeros(0), batch.reply[1, :9_000]]
    texts = recognizer.transcribe(rows)
    assert texts[1] == ""
    assert [texts[0], texts[2]] == recognizer.transcribe(batch.reply, batch.reply_lengths)
    assert recognizer.transcribe([]) == []
    assert recognizer.transcribe(torch.zeros(2, 0)) == ["", ""]


def test_training_damages_what_validation_leaves(tmp_path):
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, waveform, generator):
            seen.append(generator.initial_seed())
            return waveform

    recognizer = make_recognizer(augmentation=Recorder(), seed=5).train()
    loader = DataLoader([make_batch()] * 2, batch_size=None)
    make_trainer(tmp_path, 2).fit(recognizer, loader, loader)
    assert seen == [derive_seed(5, 0, 0), derive_seed(5, 1, 0)]


def test_source_picks_speech_and_text():
    batch = make_batch()
    assert make_recognizer()._pairs(batch)[2] == TEXTS
    assert make_recognizer(source="query")._pairs(batch)[2] == TEXTS[::-1]
    with pytest.raises(ValueError, match="'query' and 'transcript'"):
        make_recognizer(source="query")._pairs(SpokenBatch(["a"], ["x"]))


def test_errors_say_how_to_fix_them() -> None:
    with pytest.raises(ValueError, match=r"\['7'\].*extend `characters`"):
        make_recognizer(characters=" abc").encode_text("a 7")
    with pytest.raises(ValueError, match="batch, samples"):
        make_recognizer().transcribe(torch.zeros(100))

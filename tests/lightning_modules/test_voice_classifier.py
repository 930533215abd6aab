"""The voice classifier: it tells voices apart that say the same; neither loudness nor padding matters."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.errors import UserError
from lightning_modules.voice_classifier import VoiceClassifier

VOICES = ("low", "high")


def say(pitch_hz: float, seed: int, num_samples: int) -> Tensor:
    """A harmonic sound whose loudness over time, its "text", depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    syllables = torch.rand(1, 1, 8, generator=generator)
    level = torch.nn.functional.interpolate(syllables, num_samples, mode="linear")[0, 0]
    time = torch.arange(num_samples) / 16_000
    return 0.1 * level * sum(torch.sin(2 * torch.pi * k * pitch_hz * time) for k in range(1, 8))


def make_batch(seeds: range, pitches: tuple[float, float] = (110.0, 190.0)) -> SpokenBatch:
    rows = [say(pitch, seed, 8000 + 200 * (seed % 7)) for seed in seeds for pitch in pitches]
    corpora = [voice for _ in seeds for voice in VOICES]
    lengths = torch.tensor([len(row) for row in rows])
    reply = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return SpokenBatch(
        [str(i) for i in range(len(rows))], [""] * len(rows), reply=reply, reply_lengths=lengths, corpora=corpora
    )


def make_classifier(**settings) -> VoiceClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VoiceClassifier(VOICES, ConvSpeechEncoder(16, dilations=(1,)), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VoiceClassifier, dict[str, float]]:
    classifier = make_classifier(learning_rate=1e-2, warmup_steps=2)
    batches = [make_batch(range(4 * step, 4 * step + 4)) for step in range(20)]
    trainer = L.Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path_factory.mktemp("voices"),
    )  # fmt: skip
    validation = DataLoader([make_batch(range(900, 903)), make_batch(range(903, 907))], batch_size=None)
    trainer.fit(classifier, DataLoader(batches, batch_size=None), validation)
    metrics = trainer.validate(classifier, validation, verbose=False)[0]
    return classifier.eval(), metrics


def test_it_learns_the_voice_of_texts_it_never_heard(trained: tuple[VoiceClassifier, dict[str, float]]) -> None:
    classifier, metrics = trained
    assert metrics["val/accuracy"] == metrics["val/accuracy_low"] == metrics["val/accuracy_high"] == 1.0
    assert classifier.classify([say(110, 1234, 9000), say(190, 1234, 9000)]) == ["low", "high"]


def test_validation_counts_each_voice_for_itself(
    trained: tuple[VoiceClassifier, dict[str, float]], tmp_path: Path
) -> None:
    """Two sounds in three that are said to be high are low: a third of the high ones is right."""
    classifier, _ = trained
    batches = [make_batch(range(3), pitches=(110, 190)), make_batch(range(6), pitches=(110, 110))]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    metrics = trainer.validate(classifier, DataLoader(batches, batch_size=None), verbose=False)[0]
    assert metrics["val/accuracy_low"] == 1.0
    assert metrics["val/accuracy_high"] == pytest.approx(1 / 3)
    assert metrics["val/accuracy"] == pytest.approx(12 / 18)


def test_loudness_and_padding_change_nothing(trained: tuple[VoiceClassifier, dict[str, float]]) -> None:
    classifier, _ = trained
    batch = make_batch(range(50, 52))
    logits = classifier(batch.reply, batch.reply_lengths)
    torch.testing.assert_close(classifier(0.05 * batch.reply, batch.reply_lengths), logits, atol=1e-3, rtol=1e-3)
    noisy = batch.reply.clone()
    for row, length in enumerate(batch.reply_lengths.tolist()):
        noisy[row, length:] = 0.5  # beyond its length
        alone = classifier(batch.reply[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(alone[0], logits[row], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(classifier(noisy, batch.reply_lengths), logits, atol=1e-4, rtol=1e-4)


def test_silence_and_nothing_are_no_error(trained: tuple[VoiceClassifier, dict[str, float]]) -> None:
    classifier, _ = trained
    assert classifier.classify([torch.zeros(0), say(190, 3, 8000), torch.zeros(1600)])[:2] == ["", "high"]
    assert classifier.classify([]) == []


def test_what_it_cannot_learn_from_is_refused() -> None:
    classifier = make_classifier()
    classifier.check_data({"train": ["reply"]})
    with pytest.raises(UserError, match="train batches lack"):
        classifier.check_data({"train": ["query"]})
    batch = make_batch(range(2))
    batch.corpora = ["low", "high", "low", "middle"]
    with pytest.raises(UserError, match=r"\['middle'\] have none of the voices"):
        classifier._labelled(batch)
    batch.corpora = None
    with pytest.raises(UserError, match="a root for each voice"):
        classifier._labelled(batch)
    for voices in (["one"], ["one", "one"]):
        with pytest.raises(UserError, match="at least two, each once"):
            VoiceClassifier(voices, ConvSpeechEncoder(8))

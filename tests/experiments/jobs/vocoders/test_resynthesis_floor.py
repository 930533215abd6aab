"""The floor that a codec sets: judges hear every reply of every corpus, as it was and as it comes out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.jobs.vocoders.resynthesis_floor import ResynthesisFloor, resynthesize
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from lightning_modules.voice_classifier import VoiceClassifier
from tests.datamodules.tiny_corpus import write_split

VOICES = ("old", "new")


def no_encoder() -> nn.Module:
    encoder = nn.Identity()
    encoder.output_size = 4  # type: ignore[assignment]
    return encoder


class Listener(SpeechRecognizer):
    """Hears each reply of a corpus of noise right but the first."""

    def __init__(self) -> None:
        super().__init__(no_encoder())
        self.given: list[list[Tensor]] = []

    def transcribe(self, waveforms, lengths=None) -> list[str]:  # type: ignore[no-untyped-def]
        self.given.append(list(waveforms))
        return [f"reply {index}" if index else "nothing" for index in range(len(waveforms))]


class Ear(VoiceClassifier):
    """Says "old" of whatever has an even number of 40 ms, "new" of the rest."""

    def __init__(self) -> None:
        super().__init__(VOICES, no_encoder())

    def classify(self, waveforms) -> list[str]:  # type: ignore[no-untyped-def]
        return ["new" if len(one) // 640 % 2 else "old" for one in waveforms]


def make_vocoder(seed: int) -> CodecVocoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CodecVocoder(SpeechCodec(levels=(5, 3), channels=(8, 8, 8)).eval(), num_iterations=1)


def test_rows_are_those_of_each_corpus_and_each_codec(tmp_path: Path) -> None:
    for voice, count in zip(VOICES, (3, 4), strict=True):
        write_split(tmp_path / voice, "test", count)
    listener = Listener()
    corpora = {voice: str(tmp_path / voice) for voice in VOICES}
    job = ResynthesisFloor(
        corpora, {"first": make_vocoder(0), "other": make_vocoder(1)}, listener, Ear(), max_examples=3
    )
    metrics = job.run(tmp_path)
    assert len(metrics) == 2 * 3 * 3
    assert {metrics[f"{voice}/{name}/wer"] for voice in VOICES for name in ("original", "first", "other")} == {2 / 6}
    originals, first = listener.given[0], listener.given[1]
    assert [len(one) for one in first] == [len(one) for one in originals], "as long as what went in"
    odd = sum(len(one) // 640 % 2 for one in originals)
    assert metrics["old/first/own_voice"] == metrics["old/original/own_voice"] == pytest.approx(1 - odd / 3)
    assert metrics["new/first/own_voice"] == pytest.approx(sum(len(one) // 640 % 2 for one in listener.given[3]) / 3)
    assert metrics["old/original/mel_l1"] == 0 < metrics["old/first/mel_l1"] != metrics["old/other/mel_l1"]
    table = (tmp_path / "results.md").read_text()
    assert table.count("| 33.33 (") == 6 and "6 replies of the test splits" in table


def test_a_codec_that_restores_the_log_mel_has_no_distance() -> None:
    vocoder, reply = make_vocoder(0), 0.1 * torch.randn(6400, generator=torch.Generator().manual_seed(0))
    _, distance = resynthesize(vocoder, [reply])
    vocoder.codec.decode_mel = lambda tokens: vocoder.codec.log_mel(reply[None]) + 0.25  # type: ignore[method-assign]
    _, of_shifted = resynthesize(vocoder, [reply])
    assert of_shifted == pytest.approx(0.25, rel=1e-4) != distance


def test_voices_that_the_judge_does_not_know_are_refused() -> None:
    vocoders = {"first": make_vocoder(0)}
    for corpora, given in (({"odd": "x"}, vocoders), ({}, vocoders), ({"old": "x"}, {})):
        with pytest.raises(UserError, match=r"names of voices, \['old', 'new'\]"):
            ResynthesisFloor(corpora, given, Listener(), Ear())

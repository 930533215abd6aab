"""The judge hears audio at its own rate, and files keep theirs."""

import json
from pathlib import Path

import lightning as L
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.comparison.comparison import Comparison, at_rate
from datamodules.batch import SpokenBatch
from lightning_modules.codec.neucodec import NeuCodec
from lightning_modules.errors import UserError
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.unmasking import Unmasking
from lightning_modules.vocoder.base import Vocoder, VocoderStream
from lightning_modules.vocoder.windowed import WindowedCodecVocoder
from lightning_modules.voice_classifier import VoiceClassifier
from tests.lightning_modules.codec.tiny import make_model
from tests.lightning_modules.evaluation.sound.test_naturalness import OfIntegers, save
from tests.lightning_modules.test_speech_llm import make_batch, make_llm

TONE_HZ = 440.0


class ToneVocoder(Vocoder):
    """Speaks at 24 kHz, 960 samples per token: a tone, whatever the tokens are."""

    sample_rate, samples_per_token = 24_000, 960

    def stream(self) -> VocoderStream:
        return ToneStream()


class ToneStream(VocoderStream):
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        return tone(960 * len(tokens), 24_000)


def tone(num_samples: int, rate_hz: int) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * TONE_HZ * torch.arange(num_samples) / rate_hz)


def loudest_hz(waveform: Tensor, rate_hz: int) -> float:
    return float(torch.fft.rfft(waveform).abs().argmax()) * rate_hz / len(waveform)


class Listener(SpeechRecognizer):
    """Notes what it is given to hear."""

    def __init__(self) -> None:
        encoder = nn.Identity()
        encoder.output_size = 4  # type: ignore[assignment]
        super().__init__(encoder)
        self.given: list[Tensor] = []

    def transcribe(self, waveforms, lengths=None) -> list[str]:  # type: ignore[no-untyped-def]
        self.given += waveforms
        return ["yes"] * len(waveforms)


class Ear(VoiceClassifier):
    """Names a voice by its loudest frequency, and notes what it is given to hear."""

    def __init__(self) -> None:
        encoder = nn.Identity()
        encoder.output_size = 4  # type: ignore[assignment]
        super().__init__(["tone", "other"], encoder)
        self.given: list[Tensor] = []

    def classify(self, waveforms) -> list[str]:  # type: ignore[no-untyped-def]
        self.given += waveforms
        is_tone = [len(one) and abs(loudest_hz(one, 16_000) - TONE_HZ) < 20 for one in waveforms]
        return ["" if not len(one) else "tone" if yes else "other" for one, yes in zip(waveforms, is_tone, strict=True)]


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Path, Listener, SpokenBatch]:
    decodings = {"ntp": Decoding("ntp"), "mdm_4": Decoding("mdm", 4), "mdm_4_sure": Decoding("mdm", 4, Unmasking(0.7))}
    llm = make_llm("ntp", "mdm", decodings=decodings)
    llm.vocoder = ToneVocoder()
    listener = Listener()
    batch = make_batch(0)
    batch.reply, batch.reply_lengths = (
        tone(16_000, 16_000).expand(3, -1).clone(),
        torch.tensor([16_000, 12_000, 16_000]),
    )
    comparison = Comparison(listener, 1, Ear(), utmos_file=str(save(OfIntegers(), tmp_path / "utmos.pt")))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[comparison], default_root_dir=tmp_path
    )
    trainer.test(llm, DataLoader([batch], batch_size=None), verbose=False)
    return tmp_path, listener, batch


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_audio_of_another_rate_is_resampled_for_the_judge_and_kept_for_people(
    compared: tuple[Path, Listener, SpokenBatch],
) -> None:
    folder, listener, batch = compared
    assert batch.unit_lengths is not None and batch.reply_lengths is not None
    assert len(listener.given) == 3 * (2 + 3)
    for row, (original, resynthesis) in enumerate(zip(listener.given[::5], listener.given[1::5], strict=True)):
        assert len(original) == int(batch.reply_lengths[row]), "it is at the judge's rate already"
        assert len(resynthesis) == int(batch.unit_lengths[row]) * 640, "as long in seconds, at 16 kHz"
    for heard in listener.given:
        assert not len(heard) or loudest_hz(heard, 16_000) == pytest.approx(TONE_HZ, rel=0.02)
    rates = {path.stem: soundfile.info(path).samplerate for path in folder.glob("audio/*/*.wav")}
    assert rates.items() >= {"original-audio": 16_000, "codec-resynthesis": 24_000, "query": 16_000}.items()


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_codec_at_50_hz_and_24_khz_is_heard_and_timed_at_its_own_rates(tmp_path: Path) -> None:
    llm = make_llm("ntp", decodings={"ntp": Decoding("ntp")})
    llm.vocoder = WindowedCodecVocoder(NeuCodec(make_model("neucodec")), chunk_tokens=10, lookback_tokens=4)
    listener, batch = Listener(), make_batch(0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Comparison(listener, 0)],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(llm, DataLoader([batch], batch_size=None), verbose=False)
    assert batch.unit_lengths is not None
    # 50 tokens per second, heard at 16 kHz
    assert [len(heard) for heard in listener.given[::2]] == [320 * count for count in batch.unit_lengths.tolist()]
    row = next(row for row in json.loads((tmp_path / "results.json").read_text()) if row["name"] == "ntp")
    assert row["rtf"] == pytest.approx(50 / row["tokens_per_s"])


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_one_talker_has_a_row_and_a_curve_for_each_rule(compared: tuple[Path, Listener, SpokenBatch]) -> None:
    folder, _, _ = compared
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    assert [rows[name]["rule"] for name in ("mdm_4", "mdm_4_sure")] == ["", "threshold 0.7"]
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {
        "ntp",
        "mdm",
        "mdm_threshold_0.7",
        "reference",
        "table",
    }
    assert "mdm_4_sure" in (folder / "summary.txt").read_text()
    transcripts = json.loads((folder / "transcripts.json").read_text())
    assert {one["decoding"] for one in transcripts} == rows.keys()


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_voices_of_originals_resynthesis_and_decodings_are_in_the_rows(
    compared: tuple[Path, Listener, SpokenBatch],
) -> None:
    folder, _, _ = compared
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    assert rows["original audio"]["voices"] == rows["codec resynthesis"]["voices"] == {"tone": 1.0, "other": 0.0}
    transcripts = json.loads((folder / "transcripts.json").read_text())
    for name, row in rows.items():
        voices = [one["voice"] for one in transcripts if one["decoding"] == name]
        assert row["voices"]["tone"] == voices.count("tone") / 3
        assert row["wer_gold_micro"] >= 0 and len(row["wer_gold_interval"]) == 2


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_sound_and_predicted_naturalness_are_in_the_rows_and_on_the_page(
    compared: tuple[Path, Listener, SpokenBatch],
) -> None:
    folder, _, _ = compared
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    for row in rows.values():
        assert row["sound"].keys() >= {"silent_share", "repeated_share", "naturalness"}
    # the network gives 1 and four times the mean amplitude, 0.5 * 2 / pi for this tone
    assert rows["original audio"]["sound"]["naturalness"] == pytest.approx(1 + 4 / torch.pi, abs=0.01)
    assert ">MOS</button>" in (folder / "comparison.html").read_text()
    assert " MOS" in (folder / "summary.txt").read_text().splitlines()[0]


def test_equal_rates_leave_audio_as_it_is() -> None:
    waveform = tone(1600, 16_000)
    assert at_rate(waveform, 16_000, 16_000) is waveform
    assert at_rate(waveform[:0], 24_000, 16_000).numel() == 0


def test_a_negative_number_of_samples_is_refused() -> None:
    with pytest.raises(UserError, match="num_samples is -1"):
        Comparison(Listener(), -1)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_test_in_batches_says_the_same_and_times_the_first_dialogues(tmp_path: Path) -> None:
    decodings = {"ntp": Decoding("ntp"), "mdm_4": Decoding("mdm", 4)}
    found = {}
    for num_timed in (None, 2):
        llm = make_llm("ntp", "mdm", decodings=decodings).double()
        llm.vocoder = ToneVocoder()
        comparison = Comparison(Listener(), 1, num_timed=num_timed)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[comparison],
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.test(llm, DataLoader([make_batch(0)], batch_size=None), verbose=False)
        found[num_timed] = comparison
    for one, other in zip(found[None].records, found[2].records, strict=True):
        assert (one.name, one.example_id, one.text, one.num_tokens) == (
            other.name, other.example_id, other.text, other.num_tokens,
        )  # fmt: skip
    assert [row.wer_micro for row in found[None].rows] == [row.wer_micro for row in found[2].rows]
    timed = [record.example_id for record in found[2].records if record.reply is not None and record.reply.is_timed]
    assert timed == ["a", "a", "b", "b"]
    assert all(row.tokens_per_s and row.first_chunk_ms for row in found[2].rows if row.talker)

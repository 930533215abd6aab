"""The comparison of vocoders: its figures are those of the sounds, and each reply goes through all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from torch import Tensor

from datamodules.formats.released_layout import ReleasedLayout
from experiments.jobs.vocoders.vocoder_comparison import VocoderComparison, VocoderRow, format_table
from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.errors import UserError
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.base import Vocoder, VocoderStream

WORDS = ["yes it is", "no", "go home now"]


class _Store(Vocoder):
    """Gives back the reply whose number its tokens name, at a level."""

    sample_rate, samples_per_token = 16_000, 640

    def __init__(self, replies: list[Tensor], level: float) -> None:
        super().__init__()
        self.replies, self.level = replies, level

    def stream(self) -> VocoderStream:
        return _StoreStream(self)


class _StoreStream(VocoderStream):
    def __init__(self, store: _Store) -> None:
        self.store = store

    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        reply = self.store.replies[int(tokens[0])] * self.store.level
        return reply if last else reply[: 640 * (len(tokens) - 1)]


class _ByLength(SpeechRecognizer):
    """Hears the words of the reply of that length, but the first word only if it is quiet."""

    def transcribe(self, waveforms: list[Tensor], lengths: Tensor | None = None) -> list[str]:  # type: ignore[override]
        said = [WORDS[len(one) // 16_000 - 1] for one in waveforms]
        return [w if one.abs().max() > 0.05 else w.split()[0] for w, one in zip(said, waveforms, strict=True)]


@pytest.fixture
def replies(tmp_path: Path) -> list[Tensor]:
    folder = tmp_path / "corpus" / "spoken"
    folder.mkdir(parents=True)
    items, sounds = [], []
    for index, text in enumerate(WORDS):
        sound = 0.3 * np.sin(np.arange(16_000 * (index + 1)) * 0.1).astype(np.float32)
        soundfile.write(folder / f"{index}.wav", sound, 16_000)
        np.save(folder / f"{index}.npy", np.full(25 * (index + 1), index, dtype=np.int32))
        says = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": text}]
        paths = {"units": f"spoken/{index}.npy", "reply_speech": f"spoken/{index}.wav"}
        items.append({"id": str(index), "conversations": says, **paths})
        sounds.append(torch.from_numpy(soundfile.read(folder / f"{index}.wav", dtype="float32")[0]))
    (folder / "test.json").write_text(json.dumps(items))
    return sounds


def layout(tmp_path: Path, fields: tuple[str, ...] = ("reply", "units")) -> ReleasedLayout:
    return ReleasedLayout(tmp_path / "corpus" / "spoken" / "test.json", tmp_path / "corpus", fields=fields)


def test_figures_are_those_of_the_sounds(tmp_path: Path, replies: list[Tensor]) -> None:
    vocoders = {"loud": _Store(replies, 1.0), "quiet": _Store(replies, 0.1)}
    recognizer = _ByLength(ConvSpeechEncoder(8, dilations=(1,)))
    report = VocoderComparison(vocoders, recognizer, layout(tmp_path)).run(tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == ["original", "loud", "quiet"]
    assert [rows[name]["wer"] for name in rows] == [0.0, 0.0, pytest.approx(4 / 7)]
    assert rows["loud"]["mel_distance_db"] == 0.0
    assert 1.0 < rows["quiet"]["mel_distance_db"] <= 20.0, "bands of a tenth of the level, or at the floor"
    assert rows["loud"]["time_ratio"] == 1.0 and rows["quiet"]["time_ratio"] > 0
    assert rows["quiet"]["first_samples_audio_ms"] == pytest.approx(15 * 40)
    assert report["quiet/wer"] == rows["quiet"]["wer"]
    assert json.loads((tmp_path / "transcripts.json").read_text())["quiet"] == ["yes", "no", "go"]
    assert "| quiet | 57.14 |" in (tmp_path / "results.md").read_text()
    picture = imread(tmp_path / "mels.png")[..., :3]
    assert abs(picture - picture[0, 0]).mean() > 0.01, "the picture shows something"


def test_the_table_leaves_open_what_an_original_has_not() -> None:
    table = format_table([VocoderRow("original", 0.01, (0.0, 0.025))], 5, 16)
    assert "| original | 1.00 | 0.0 to 2.5 | - | - | - | - | - |" in table


def test_wrong_settings_are_refused(tmp_path: Path, replies: list[Tensor]) -> None:
    recognizer, vocoders = SpeechRecognizer(ConvSpeechEncoder(8, dilations=(1,))), {"a": _Store(replies, 1.0)}
    with pytest.raises(UserError, match="vocoders is empty"):
        VocoderComparison({}, recognizer, layout(tmp_path))
    with pytest.raises(UserError, match=r"\['units'\] are needed"):
        VocoderComparison(vocoders, recognizer, layout(tmp_path, ("reply",)))
    with pytest.raises(UserError, match="picture_example is 3, but there are 3"):
        VocoderComparison(vocoders, recognizer, layout(tmp_path), picture_example=3).run(tmp_path)
    with pytest.raises(UserError, match="first_tokens is 0"):
        VocoderComparison(vocoders, recognizer, layout(tmp_path), first_tokens=0)

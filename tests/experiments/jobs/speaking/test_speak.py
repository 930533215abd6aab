"""A query in, a spoken reply out: from files of all kinds, from text, from every kind of run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from datamodules.synthetic.espeak import Voice
from experiments.jobs.exporter import Exporter
from experiments.jobs.speaking.queries import read_query, speak_query
from experiments.jobs.speaking.speak import Speak
from experiments.jobs.speaking.speaking_model import load_speaking_model
from experiments.jobs.speaking.timeline import BlockTimes, longest_gap_s
from lightning_modules.errors import UserError
from lightning_modules.inference.pipelines import Overlapped
from lightning_modules.talker.decoding.decoding import Decoding


def tone(file: Path, rate_hz: int, channels: int = 1, seconds: float = 0.5) -> Path:
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    one = 0.3 * np.sin(2 * np.pi * 440 * at_s)
    soundfile.write(file, np.stack([one] * channels, axis=1), rate_hz)
    return file


def test_a_file_is_answered_and_told(runs: Path, tmp_path: Path) -> None:
    query = tone(tmp_path / "query.wav", 44_100, 2)
    out = tmp_path / "out"
    metrics = Speak(runs / "comparison", query=query, decoding="mdm_4").run(out)
    heard, rate = soundfile.read(out / "query.wav", dtype="float32")
    assert rate == 16_000 and len(heard) == 8_000
    model = load_speaking_model(runs / "comparison")
    decoding = model.decoding("mdm_4")
    reply = model.responder.answer(model.responder.write_text(torch.from_numpy(heard), None), decoding)
    spoken, rate = soundfile.read(out / "reply.wav", dtype="float32")
    assert rate == 16_000 and len(spoken) == len(reply.waveform) > 0
    record = json.loads((out / "timeline.json").read_text())
    assert record["text"] == reply.text
    blocks = record["blocks"]
    assert sum(block["num_speech_tokens"] for block in blocks) == len(reply.speech_tokens)
    assert [block["num_forwards"] for block in blocks] == reply.num_forwards
    assert reply.text.startswith("".join(block["text"] for block in blocks))
    times = [block[name] for block in blocks for name in ("text_s", "tokens_s", "samples_s")]
    assert times == sorted(times) and times[0] > 0
    assert blocks[0]["audio_start_s"] == 0 and blocks[-1]["audio_end_s"] == pytest.approx(metrics["reply_s"])
    first = next(block for block in blocks if block["audio_end_s"])
    assert first["samples_s"] == pytest.approx(metrics["first_chunk_ms"] / 1000)
    summary = (out / "summary.txt").read_text()
    assert "44,100 Hz, 2 channels; 0.50 s" in summary and "mdm_4 (mdm, 4 steps per block)" in summary
    assert summary.count(" to ") >= len(blocks)


def test_parts_that_work_at_the_same_time_say_the_same(runs: Path, tmp_path: Path) -> None:
    query = tone(tmp_path / "query.wav", 16_000)
    records = []
    for pipeline in (None, Overlapped()):
        Speak(runs / "comparison", query=query, decoding="mdm_4", pipeline=pipeline).run(tmp_path)
        records.append(
            (json.loads((tmp_path / "timeline.json").read_text()), soundfile.read(tmp_path / "reply.wav")[0])
        )
    (one, heard), (other, heard_overlapped) = records
    np.testing.assert_array_equal(heard, heard_overlapped)
    told = ("text", "num_text_tokens", "num_speech_tokens", "num_forwards", "audio_end_s")
    assert one["text"] == other["text"] and len(other["blocks"]) > 1
    assert [[block[name] for name in told] for block in one["blocks"]] == [
        [block[name] for name in told] for block in other["blocks"]
    ]
    for record in (one, other):
        assert record["blocks"][0]["samples_s"] == pytest.approx(record["first_chunk_ms"] / 1000)
        ends = [span["end_s"] for span in record["spans"]]
        assert max(ends) == pytest.approx(record["rtf_of_all"] * record["reply_s"])
    added = sum(span["end_s"] - span["start_s"] for span in one["spans"])
    assert added == pytest.approx(max(span["end_s"] for span in one["spans"])), "one after the other"


def test_the_query_is_one_file_or_one_text() -> None:
    with pytest.raises(UserError, match="there is no query; give one, by query=FILE.wav or by text="):
        Speak(Path("run"))
    with pytest.raises(UserError, match="there are two queries"):
        Speak(Path("run"), query=Path("a.wav"), text="hello")


def test_text_is_spoken(runs: Path, tmp_path: Path) -> None:
    voice = Voice(variant="f2")
    Speak(runs / "comparison", text="hello there", decoding="ntp", voice=voice).run(tmp_path)
    heard, _ = soundfile.read(tmp_path / "query.wav", dtype="float32")
    np.testing.assert_allclose(heard, speak_query("hello there", voice).numpy(), atol=1e-4)
    summary = (tmp_path / "summary.txt").read_text()
    assert "'hello there', spoken by eSpeak NG en-us+f2" in summary and "\nheard" not in summary


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: tone(file, 16_000, seconds=0.1), "takes 0.10 s; give one of 0.2 to 30 s"),
        (lambda file: tone(file, 8_000, seconds=30.5), "takes 30.50 s"),
        (lambda file: file.write_bytes(b"RIFF no audio"), "is not readable as audio"),
        (lambda file: soundfile.write(file, np.zeros(8_000), 16_000), "is silent"),
        (lambda file: soundfile.write(file, np.full(8_000, np.nan), 16_000, subtype="FLOAT"), "not finite"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "query.wav")
    with pytest.raises(UserError, match=message):
        read_query(tmp_path / "query.wav")


def test_a_missing_query_and_an_empty_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="query: there is no file .*nowhere.wav; give a wav"):
        read_query(tmp_path / "nowhere.wav")
    with pytest.raises(UserError, match="text is empty"):
        speak_query("  ", Voice())


@pytest.mark.parametrize(("rate_hz", "suffix"), [(8_000, "wav"), (48_000, "flac"), (22_050, "ogg")])
def test_any_rate_is_heard_alike(rate_hz: int, suffix: str, tmp_path: Path) -> None:
    query, source = read_query(tone(tmp_path / f"query.{suffix}", rate_hz))
    assert f"{rate_hz:,} Hz, 1 channel" in source and len(query) == 8_000
    spectrum = torch.fft.rfft(query).abs()
    assert int(spectrum.argmax()) == 220  # 440 Hz in half a second


def test_every_kind_of_run_speaks_and_alike(runs: Path, tmp_path: Path) -> None:
    Exporter(runs / "comparison").run(tmp_path)
    query = 0.1 * torch.randn(8_000, generator=torch.Generator().manual_seed(3))
    replies = []
    for run, vocoder_run in (
        (runs / "comparison", None),
        (tmp_path / "export", None),
        (tmp_path, None),
        (runs / "base", runs / "comparison"),
    ):
        responder = (model := load_speaking_model(run, vocoder_run)).responder
        assert not model.llm.training
        replies.append(responder.answer(responder.write_text(query), model.decoding("mdm_4")))
    for reply in replies:
        n = min(len(reply.speech_tokens), len(replies[0].speech_tokens))
        assert n and torch.equal(reply.speech_tokens[:n], replies[0].speech_tokens[:n])


def test_a_training_takes_the_vocoder_of_the_comparison_beside_it(runs: Path, tmp_path: Path) -> None:
    beside = shutil.copytree(runs / "comparison", tmp_path / "comparison-0000000a")
    (beside / "finished.json").write_text("{}")
    shutil.copytree(runs / "base", tmp_path / "talkers-0000000b")
    model = load_speaking_model(tmp_path / "talkers-0000000b")
    assert model.llm.vocoder is not None and model.decoding("ntp").talker == "ntp"


def test_decodings_are_named_by_the_run_or_made(runs: Path) -> None:
    model = load_speaking_model(runs / "comparison")
    assert model.decoding("ntp_voice") == model.llm.decodings["ntp_voice"]
    assert model.decoding("mdm_2") == Decoding("mdm", 2)
    assert model.decoding("mdm").num_steps in (8, 4)
    with pytest.raises(UserError, match="there is no mdn_4; did you mean mdm_4"):
        model.decoding("mdn_4")
    with pytest.raises(UserError, match="num_steps is 3"):
        model.decoding("mdm_3")
    trained = load_speaking_model(runs / "lora", runs / "comparison")
    assert trained.decoding("ntp").adapter == "trained"


def test_passes_run_in_the_precision_that_is_asked_for(runs: Path) -> None:
    model, ones = load_speaking_model(runs / "comparison"), torch.ones(2, 2)
    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
        with model.in_precision(precision):
            assert (ones @ ones).dtype == dtype
    with pytest.raises(UserError, match="precision is 'bf17'; give one of 32-true"):
        model.in_precision("bf17")


def block(samples_s: float, start_s: float, end_s: float) -> BlockTimes:
    return BlockTimes("", 0, 16, 4, 0.0, 0.0, samples_s, start_s, end_s)


def test_the_longest_gap_is_what_a_listener_waits() -> None:
    steady = [block(0.1, 0, 0.6), block(0.2, 0.6, 1.2), block(1.2, 1.2, 1.8)]
    assert longest_gap_s(steady) <= 0
    late = [block(0.1, 0, 0.6), block(1.0, 0.6, 1.2), block(1.9, 1.2, 1.2), block(1.9, 1.2, 1.8)]
    assert longest_gap_s(late) == pytest.approx(0.3)

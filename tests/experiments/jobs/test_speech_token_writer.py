"""The job that writes speech tokens: complete, repeatable, and it resumes where it was killed."""

import json

import numpy as np
import pytest
import soundfile
import soxr
import torch

from experiments.jobs.speech_token_writer import SpeechTokenWriter, token_statistics
from lightning_modules.codec.neucodec import NeuCodec
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from tests.lightning_modules.codec.tiny import make_model


@pytest.fixture
def codec() -> SpeechCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SpeechCodec(channels=(16, 16, 16))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus" / "spoken"
    (folder / "replies").mkdir(parents=True)
    generator = np.random.default_rng(0)
    items = []
    for index, samples in enumerate([5_000, 641, 3_200]):
        soundfile.write(folder / "replies" / f"{index}.wav", 0.1 * generator.standard_normal(samples), 16_000)
        items.append(
            {
                "id": str(index),
                "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "Yes."}],
                "units": f"spoken/t_tokens/{index}.npy",
                "reply_speech": f"spoken/replies/{index}.wav",
            }
        )
    (folder / "train.json").write_text(json.dumps(items))
    return tmp_path / "corpus"


def write(codec, corpus, output_dir, **settings):
    output_dir.mkdir(exist_ok=True)
    writer = SpeechTokenWriter(codec, corpus, "spoken", ["train"], batch_size=2, **settings)
    return writer.run(output_dir)


def test_tokens_are_those_of_each_reply_alone(codec, corpus, tmp_path):
    report = write(codec, corpus, tmp_path / "out")
    assert (
        report["train/num_replies"] == 3 and report["train/num_tokens"] == 8 + 2 + 5 and report["train/tokens_max"] == 8
    )
    assert json.loads((tmp_path / "out" / "speech_tokens.json").read_text()) == report
    for index in range(3):
        samples, _ = soundfile.read(corpus / f"spoken/replies/{index}.wav", dtype="float32")
        alone, _ = codec.encode(torch.from_numpy(samples)[None])
        assert np.load(tmp_path / f"out/spoken/t_tokens/{index}.npy").tolist() == alone[0].tolist()


def test_replies_are_resampled_to_what_the_codec_takes_and_the_codec_leaves_a_record(codec, corpus, tmp_path):
    neucodec = NeuCodec(make_model("neucodec"))
    seconds = np.arange(24_000) / 24_000
    tone = 0.3 * np.sin(2 * np.pi * 200 * seconds) * seconds
    soundfile.write(corpus / "spoken/replies/1.wav", np.stack([tone, tone], axis=1), 24_000)
    report = write(neucodec, corpus, tmp_path / "out")
    assert report["train/num_tokens"] == 5_000 // 320 + 50 + 3_200 // 320 and report["train/hours"] == 0.0004
    at_16_khz = soxr.resample(soundfile.read(corpus / "spoken/replies/1.wav", dtype="float32")[0][:, 0], 24_000, 16_000)
    alone, _ = neucodec.encode(torch.from_numpy(at_16_khz)[None])
    assert np.load(tmp_path / "out/spoken/t_tokens/1.npy").tolist() == alone[0].tolist()
    record = json.loads((tmp_path / "out/codec.json").read_text())
    assert record == {
        "codec": "neucodec", "codebook_size": 65_536, "frame_rate_hz": 50.0, "sample_rate": 24_000,
        "written_by": "lightning_modules.codec.neucodec.NeuCodec",
    }  # fmt: skip
    with pytest.raises(UserError, match="and the SpeechCodec .* codec 'neucodec' and 'embedded'"):
        write(codec, corpus, tmp_path / "out")


def test_it_resumes_where_it_was_killed(codec, corpus, tmp_path):
    whole = write(codec, corpus, tmp_path / "out")
    kept = tmp_path / "out/spoken/t_tokens/0.npy"
    time = kept.stat().st_mtime_ns
    (tmp_path / "out/spoken/t_tokens/1.npy").unlink()
    assert write(codec, corpus, tmp_path / "out") == whole
    assert kept.stat().st_mtime_ns == time


def test_statistics(codec):
    statistics = token_statistics([np.array([1, 2, 1, 2, 1])], codec.token_format)
    assert statistics["codebook_share"] == 0.002
    assert statistics["entropy_bits"] == pytest.approx(0.971, abs=1e-3)
    assert statistics["entropy_given_previous_bits"] == 0


def test_errors_name_the_file(codec, corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*train.json"):
        write(codec, tmp_path / "nowhere", tmp_path / "out")
    soundfile.write(corpus / "spoken/replies/1.wav", np.zeros(0), 8_000)
    with pytest.raises(ValueError, match="1.wav: holds no samples"):
        write(codec, corpus, tmp_path / "out")
    (corpus / "spoken/replies/0.wav").unlink()
    with pytest.raises(FileNotFoundError, match="0.wav"):
        write(codec, corpus, tmp_path / "out2")
    items = json.loads((corpus / "spoken/train.json").read_text())
    del items[2]["units"]
    (corpus / "spoken/train.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match="'2': has no 'units' key"):
        write(codec, corpus, tmp_path / "out3")


def test_tokens_are_not_written_outside_of_the_run(codec, corpus, tmp_path):
    items = json.loads((corpus / "spoken/train.json").read_text())
    items[1]["units"] = "../../elsewhere.npy"
    (corpus / "spoken/train.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=r"'1': 'units' leads out of the corpus \(../../elsewhere.npy\)"):
        write(codec, corpus, tmp_path / "out")


def test_an_empty_batch_is_refused(codec):
    with pytest.raises(ValueError, match="batch_size is 0"):
        SpeechTokenWriter(codec, "nowhere", batch_size=0)

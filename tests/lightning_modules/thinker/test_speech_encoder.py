"""The speech encoder has Whisper's numbers, and a row does not depend on its neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from lightning_modules.thinker.log_mel import WhisperLogMel
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from tests.lightning_modules.thinker.tiny import make_speech_encoder


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_log_mel_equals_the_feature_extractor_of_transformers(num_mel_bins: int) -> None:
    rng = np.random.default_rng(0)
    loud, quiet = rng.normal(0, 0.3, 30000), rng.normal(0, 1e-3, 17001)
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=2)
    rows = [row.astype(np.float32) for row in (loud, quiet)]
    expected = extractor(rows, sampling_rate=16000, return_tensors="pt")["input_features"]
    waveform = torch.stack([torch.nn.functional.pad(torch.from_numpy(row), (0, 32000 - len(row))) for row in rows])
    torch.testing.assert_close(WhisperLogMel(num_mel_bins)(waveform), expected, atol=1e-5, rtol=0)


def test_padded_mode_equals_the_encoder_of_transformers() -> None:
    encoder = make_speech_encoder(pad_to_s=6.0).eval()
    waveform = 0.1 * torch.randn(1, 30000, generator=torch.Generator().manual_seed(0))
    frames, lengths = encoder(waveform, torch.tensor([30000]))
    extractor = WhisperFeatureExtractor(chunk_length=6)
    features = extractor(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    expected = encoder.encoder(features).last_hidden_state
    assert lengths.tolist() == [94] and frames.shape == (1, 94, 32)
    torch.testing.assert_close(frames, expected[:, :94], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 24000), min_size=2, max_size=4), extra=st.integers(0, 5000))
def test_a_batched_row_equals_the_single_row(attention: str, lengths: list[int], extra: int) -> None:
    torch.manual_seed(0)
    encoder = make_speech_encoder(attention=attention).eval()
    waveform = 0.1 * torch.randn(len(lengths), max(lengths) + extra)  # noise past a row's end must not be heard
    with torch.no_grad():
        frames, frame_lengths = encoder(waveform, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            single, single_length = encoder(waveform[row : row + 1, :length], torch.tensor([length]))
            assert frame_lengths[row] == single_length[0] == -(-length // 320)
            torch.testing.assert_close(frames[row, : frame_lengths[row]], single[0], atol=1e-5, rtol=0)
            assert not frames[row, frame_lengths[row] :].any()


def test_padding_of_the_padded_mode_changes_nothing_either(speech: tuple[torch.Tensor, torch.Tensor]) -> None:
    encoder = make_speech_encoder(pad_to_s=3.0).eval()
    waveform, lengths = speech
    frames, frame_lengths = encoder(waveform, lengths)
    single, _ = encoder(waveform[1:2, : lengths[1]], lengths[1:2])
    torch.testing.assert_close(frames[1, : frame_lengths[1]], single[0], atol=1e-5, rtol=0)


def test_features_keep_float32_under_autocast() -> None:
    log_mel = WhisperLogMel()
    waveform = 0.1 * torch.randn(1, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        features = log_mel(waveform)
    assert features.dtype == torch.float32
    assert torch.equal(features, log_mel(waveform))


def test_from_pretrained_loads_a_saved_whisper(tmp_path: object) -> None:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=128,
        max_source_positions=100,
        vocab_size=51865,
    )
    whisper = WhisperModel(config).eval()
    whisper.save_pretrained(tmp_path)
    encoder = SpeechEncoder.from_pretrained(str(tmp_path), pad_to_s=2.0).eval()
    features = torch.randn(1, 128, 200)
    expected = whisper.encoder(features).last_hidden_state
    torch.testing.assert_close(encoder.encode_log_mel(features, None, None), expected, atol=1e-6, rtol=0)
    half = SpeechEncoder.from_pretrained(str(tmp_path), dtype="bfloat16", pad_to_s=2.0)
    assert half(torch.randn(1, 16000), torch.tensor([16000]))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("path", ["/no/such/folder", "./nor/this/one"])
def test_a_wrong_path_is_refused(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"speech encoder: there is no directory '{path}'"):
        SpeechEncoder.from_pretrained(path)


def test_a_folder_without_a_model_is_refused(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match="speech encoder: nothing could be loaded from"):
        SpeechEncoder.from_pretrained(str(tmp_path))


def test_bad_lengths_are_refused() -> None:
    encoder = make_speech_encoder()
    with pytest.raises(ValueError, match="query 1 of the batch holds no samples"):
        encoder(torch.zeros(2, 100), torch.tensor([100, 0]))
    with pytest.raises(ValueError, match="query 0 of the batch lasts 7.00 s, the speech encoder takes up to 6.00 s"):
        encoder(torch.zeros(1, 112000), torch.tensor([112000]))
    with pytest.raises(ValueError, match="pad_to_s is 7.0 s"):
        make_speech_encoder(pad_to_s=7.0)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        SpeechEncoder.from_pretrained("/tmp", dtype="int8")

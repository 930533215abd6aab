"""The filterbank of Kaldi: that of an extractor of transformers that was written apart from it."""

import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from lightning_modules.acoustics.kaldi_log_mel import KaldiLogMel, mel_filters


@pytest.mark.parametrize("samples", [560, 640, 16_000, 33_333])
def test_it_is_the_filterbank_of_seamless_m4t(samples: int) -> None:
    waveform = 0.2 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    features = KaldiLogMel()(waveform)
    inputs = SeamlessM4TFeatureExtractor()(waveform.numpy(), sampling_rate=16_000, return_tensors="pt", padding=False)
    expected = inputs["input_features"][0].reshape(-1, 80)
    assert features.shape == (1 + (samples - 400) // 160, 80)
    torch.testing.assert_close(features[: len(expected)], expected, atol=5e-4, rtol=0)


def test_each_bin_below_nyquist_is_shared_by_neighbouring_filters() -> None:
    """Triangles of one width in the mel scale, each half over the next, add up to 1 between the first and last tip."""
    filters = mel_filters()
    inner = slice(3, 240)
    torch.testing.assert_close(filters.sum(0)[inner], torch.ones_like(filters[0, inner]))
    assert filters.shape == (80, 256) and filters.min() == 0

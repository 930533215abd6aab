"""Log-mel: its grid, its scale, and padding that changes nothing."""

import math

import pytest
import torch

from lightning_modules.acoustics.log_mel import LOG_MEAN, LOG_STD, NUM_MELS, LogMel, zero_beyond


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 4000])
def test_frames_cover_the_samples(samples):
    features = LogMel()(torch.randn(2, samples))
    assert features.shape == (2, NUM_MELS, math.ceil(samples / 160))


def test_frame_is_centred_on_its_samples():
    click = torch.zeros(1, 1600)
    click[0, 160 * 4 + 80] = 1.0
    energy = LogMel()(click)[0].mean(0)
    torch.testing.assert_close(energy[:4].flip(0), energy[5:9], atol=1e-3, rtol=1e-3)
    assert energy.argmax() == 4


def test_full_scale_sine_is_0_db_and_silence_the_floor():
    time = torch.arange(16_000) / 16_000
    log_mel = LogMel()
    sine = log_mel(torch.sin(2 * math.pi * 1000 * time)[None])[0, :, 50] * LOG_STD + LOG_MEAN
    assert abs(float(sine.max())) < 0.3
    silence = log_mel(torch.zeros(1, 320))
    torch.testing.assert_close(silence, torch.full_like(silence, (math.log(1e-4) - LOG_MEAN) / LOG_STD))  # -80 dB
    assert log_mel.mel_magnitude(silence).abs().max() < 1e-8


def test_padded_row_equals_the_row_alone():
    log_mel = LogMel()
    row = torch.randn(1, 800)
    padded = log_mel(torch.cat([row, torch.zeros(1, 3200)], 1))
    torch.testing.assert_close(padded[:, :, :5], log_mel(row), atol=1e-5, rtol=1e-5)


def test_zero_beyond_masks_rows_and_rejects_wrong_lengths():
    masked = zero_beyond(torch.ones(2, 3, 2), torch.tensor([1, 3]))
    assert masked.sum((1, 2)).tolist() == [2.0, 6.0]
    with pytest.raises(ValueError, match="0..3"):
        zero_beyond(torch.ones(1, 3), torch.tensor([4]))

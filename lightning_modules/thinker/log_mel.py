"""Whisper's log-mel features, computed by torch on the waveform's own device."""

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from lightning_modules.number_checks import require_at_least

SAMPLE_RATE_HZ = 16000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400


class WhisperLogMel(nn.Module):
    """Waveform to log-mel at 100 Hz with the numbers of transformers' ``WhisperFeatureExtractor``.

    Args:
        num_mel_bins: Mel bands, 80 for most Whisper checkpoints and 128 for large-v3.

    Raises:
        UserError: If there are no mel bands.
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, num_mel_bins: int = 80) -> None:
        super().__init__()
        require_at_least(1, num_mel_bins=num_mel_bins)
        filters = mel_filter_bank(
            num_frequency_bins=1 + WINDOW_SAMPLES // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE_HZ / 2,
            sampling_rate=SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.register_buffer("mel_filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute features whose range is 2 (8 decades of power) below each row's loudest value.

        At least one window of zeros should follow the end of a row. Zeros are never the loudest, so more padding
        changes none of the row's features.

        Args:
            waveform: ``(B, S) float``, 16 kHz, S at least 201.

        Returns:
            ``(B, num_mel_bins, S // 160) float32``.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(), WINDOW_SAMPLES, HOP_SAMPLES, window=self.window.float(), return_complex=True
            )
            power = (spectrum[..., :-1].abs() ** 2).contiguous()
            log_mel = torch.clamp(self.mel_filters.float() @ power, min=1e-10).log10()
            log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
            return (log_mel + 4.0) / 4.0

"""Log-mel features at 100 Hz: frame f is centred on sample ``160 f + 80``, so S samples give ``ceil(S / 160)``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from lightning_modules.errors import UserError

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 640
NUM_MELS = 80
FLOOR = 1e-4
LOG_MEAN = -5.5
LOG_STD = 2.5
SILENCE = (math.log(FLOOR) - LOG_MEAN) / LOG_STD  # of a normalised frame of digital silence


class LogMel(nn.Module):
    """Normalised log-mel spectrogram, in which a full-scale sine has magnitude 1 and the floor is -80 dB.

    Samples beyond the ends count as digital silence, so a zero-padded row gives the same frames as the row alone,
    followed by frames of digital silence.
    """

    hop_samples = HOP_SAMPLES
    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        # On the CPU even under torch.device("meta"): constants are computed from them, here and in the vocoder.
        window = torch.hann_window(WINDOW_SAMPLES, device="cpu")
        bins = WINDOW_SAMPLES // 2 + 1
        filters = mel_filter_bank(bins, NUM_MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, mel_scale="slaney").T
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float().contiguous(), persistent=False)
        self.magnitude_scale = 2.0 / float(window.sum())

    def magnitude(self, waveform: Tensor) -> Tensor:
        """Compute the linear magnitude spectrogram.

        Args:
            waveform: ``(B, S) float``, 16 kHz.

        Returns:
            ``(B, WINDOW_SAMPLES // 2 + 1, ceil(S / 160)) float32``.
        """
        waveform = waveform.float()
        tail = -waveform.shape[-1] % HOP_SAMPLES
        edge = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform, (edge, edge + tail))
            spectrum = torch.stft(
                padded, WINDOW_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
            )
            return spectrum.abs() * self.magnitude_scale

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the normalised log-mel.

        Args:
            waveform: ``(B, S) float``, 16 kHz, zero beyond each row's own length.

        Returns:
            ``(B, 80, ceil(S / 160)) float32``, with a mean near 0 and a variance near 1 in speech.
        """
        magnitude = self.magnitude(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            return ((self.filters @ magnitude).clamp(min=FLOOR).log() - LOG_MEAN) / LOG_STD

    def mel_magnitude(self, log_mel: Tensor) -> Tensor:
        """Undo the logarithm and the normalisation: ``(..., 80, F)`` to linear mel magnitudes, 0 at the floor."""
        return (log_mel.float() * LOG_STD + LOG_MEAN).exp() - FLOOR


def zero_beyond(rows: Tensor, lengths: Tensor) -> Tensor:
    """Zero each row beyond its length.

    Args:
        rows: ``(B, S)`` or ``(B, S, D)``.
        lengths: ``(B,) int64``.

    Returns:
        A tensor of the shape of ``rows``.

    Raises:
        UserError: If a length is negative or exceeds the rows.
    """
    size = rows.shape[1]
    if int(lengths.max()) > size or int(lengths.min()) < 0:
        raise UserError(f"lengths must lie in 0..{size}, the padded length; got {lengths.tolist()}")
    is_inside = torch.arange(size, device=rows.device) < lengths.to(rows.device)[:, None]
    return rows * is_inside.view(*is_inside.shape, *[1] * (rows.dim() - 2))

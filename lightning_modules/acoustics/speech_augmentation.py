"""Random distortion of speech that keeps its words: level, noise, and a blurred, rippled and masked spectrum."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_within

FFT_SAMPLES = 512
HOP_SAMPLES = 256


class SpeechAugmentation(nn.Module):
    """Changes magnitudes of the short-time spectrum, keeps its phases, and adds noise; each row draws its own amounts.

    Blur and ripple imitate what any lossy resynthesis does to speech, without the use of a codec or vocoder.

    Args:
        gain_db: Largest change of a row's level, up or down.
        noise_db: Least and largest distance of white noise below a row's own level.
        blur: Largest weight of magnitudes averaged over 48 ms and 156 Hz against the sharp ones, 0 to 1.
        ripple_db: Largest standard deviation of a random smooth (48 ms, 250 Hz) change of level.
        num_time_masks: Spans of up to ``time_mask_s`` that are set to silence.
        time_mask_s: Longest such span in seconds.
        num_frequency_masks: Bands of up to ``frequency_mask_hz`` that are set to silence.
        frequency_mask_hz: Widest such band in Hz.

    Raises:
        UserError: If a number is negative or not finite, ``blur`` is above 1, or ``noise_db`` is no range.

    Reference: SpecAugment, arXiv 1904.08779.
    """

    def __init__(
        self,
        gain_db: float = 6.0,
        noise_db: Sequence[float] = (15.0, 50.0),
        blur: float = 1.0,
        ripple_db: float = 4.0,
        num_time_masks: int = 2,
        time_mask_s: float = 0.06,
        num_frequency_masks: int = 1,
        frequency_mask_hz: float = 800.0,
    ) -> None:
        super().__init__()
        require_at_least(
            0,
            gain_db=gain_db,
            ripple_db=ripple_db,
            num_time_masks=num_time_masks,
            time_mask_s=time_mask_s,
            num_frequency_masks=num_frequency_masks,
            frequency_mask_hz=frequency_mask_hz,
        )
        require_within(0, 1, blur=blur)
        if len(noise_db) != 2 or not -math.inf < noise_db[0] <= noise_db[1] < math.inf:
            raise UserError(f"noise_db is {list(noise_db)}; give two finite numbers, the smaller one first")
        self.gain_db = gain_db
        self.noise_db = (float(noise_db[0]), float(noise_db[1]))
        self.blur = blur
        self.ripple_db = ripple_db
        self.num_time_masks = num_time_masks
        self.num_frequency_masks = num_frequency_masks
        self.time_mask_frames = time_mask_s * 16_000 / HOP_SAMPLES
        self.frequency_mask_bins = frequency_mask_hz * FFT_SAMPLES / 16_000
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES), persistent=False)

    window: Tensor

    @torch.no_grad()
    def forward(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Distort speech.

        Args:
            waveform: ``(B, S) float``, 16 kHz.
            generator: Source of all randomness, on the device of the waveform.

        Returns:
            ``(B, S) float32``, a pure function of waveform and generator.
        """
        waveform = waveform.float()
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(waveform, FFT_SAMPLES, HOP_SAMPLES, window=self.window, return_complex=True)
            spectrum.mul_(self._change(spectrum.abs(), generator))
            damaged = torch.istft(spectrum, FFT_SAMPLES, HOP_SAMPLES, window=self.window, length=waveform.shape[1])
            low, high = self.noise_db
            below_db = low + (high - low) * self._uniform(generator, len(waveform), 1)
            level = damaged.square().mean(1, keepdim=True).sqrt() * 10 ** (-below_db / 20)
            damaged = damaged + level * torch.randn(damaged.shape, generator=generator, device=level.device)
            gain_db = (2 * self._uniform(generator, len(waveform), 1) - 1) * self.gain_db
            return damaged * 10 ** (gain_db / 20)

    def _change(self, magnitude: Tensor, generator: torch.Generator) -> Tensor:
        """Draw factors ``(B, K, F)`` for magnitudes ``(B, K, F)``."""
        rows, bins, frames = magnitude.shape
        blurred = F.avg_pool2d(magnitude[:, None], (5, 3), ceil_mode=True)
        blurred = F.interpolate(blurred, (bins, frames), mode="bilinear")[:, 0]
        weight = self.blur * self._uniform(generator, rows, 1, 1)
        change = torch.lerp(magnitude, blurred, weight).div_(magnitude.clamp(min=1e-6))

        coarse = torch.randn(rows, 1, bins // 8 + 1, frames // 3 + 1, generator=generator, device=magnitude.device)
        ripple = 10 ** (self.ripple_db * self._uniform(generator, rows, 1, 1, 1) * coarse / 20)
        change.mul_(F.interpolate(ripple, (bins, frames), mode="bilinear")[:, 0])

        for _ in range(self.num_time_masks):
            change.mul_(self._mask(rows, frames, self.time_mask_frames, generator)[:, None, :])
        for _ in range(self.num_frequency_masks):
            change.mul_(self._mask(rows, bins, self.frequency_mask_bins, generator)[:, :, None])
        return change

    def _mask(self, rows: int, size: int, widest: float, generator: torch.Generator) -> Tensor:
        """Draw ones ``(B, size)`` with one run of zeros in each row, up to ``widest`` long."""
        width = widest * self._uniform(generator, rows, 1)
        start = (size - width) * self._uniform(generator, rows, 1)
        position = torch.arange(size, device=width.device)
        return ((position < start) | (position >= start + width)).float()

    def _uniform(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=self.window.device)

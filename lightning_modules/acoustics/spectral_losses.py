"""Distances of waveforms that do not hear phases: short-time magnitudes at several resolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

FLOOR = 1e-3  # of a full-scale sine: 60 dB below it


class MultiResolutionStftLoss(nn.Module):
    """Mean over window lengths of the L1 of log magnitudes and the relative L2 of magnitudes.

    Args:
        window_samples: Lengths of the Hann windows, each moved by a quarter of itself; multiples of 4.

    Raises:
        UserError: If there is no window, or one is no multiple of 4.

    Reference: Parallel WaveGAN, arXiv 1910.11480, eq. 2 to 4.
    """

    def __init__(self, window_samples: Sequence[int] = (256, 512, 1024, 2048)) -> None:
        super().__init__()
        if not window_samples or any(length % 4 for length in window_samples):
            raise UserError(f"window_samples is {list(window_samples)}; give at least one, each a multiple of 4")
        require_at_least(4, **{f"window_samples[{index}]": length for index, length in enumerate(window_samples)})
        self.window_samples = tuple(window_samples)
        for length in self.window_samples:
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def magnitudes(self, waveform: Tensor, length: int) -> Tensor:
        """Compute magnitudes ``(B, F, length // 2 + 1)`` of ``(B, S)``, in which a full-scale sine has 1."""
        window = self.get_buffer(f"window_{length}")
        spectrum = torch.view_as_real(torch.fft.rfft(waveform.unfold(1, length, length // 4) * window))
        # Not abs(): its gradient is not finite at 0.
        return (spectrum.square().sum(-1) + 1e-12).sqrt() * (4.0 / length)

    def forward(self, waveform: Tensor, target: Tensor) -> Tensor:
        """Compare ``(B, S)`` with ``(B, S)``, S at least the longest window; returns a scalar, in float32."""
        with torch.autocast(waveform.device.type, enabled=False):
            waveform, target = waveform.float(), target.float()
            terms = []
            for length in self.window_samples:
                found, wanted = self.magnitudes(waveform, length), self.magnitudes(target, length)
                terms.append(((found + FLOOR).log() - (wanted + FLOOR).log()).abs().mean())
                terms.append((found - wanted).norm() / wanted.norm().clamp(min=FLOOR))
            return torch.stack(terms).sum() / len(self.window_samples)

"""Griffin-Lim that continues a waveform: it finds the phases of new frames while the past samples stay fixed."""

import torch
from torch import Tensor, nn

from lightning_modules.number_checks import require_at_least, require_below_one, require_divisible


class GriffinLim(nn.Module):
    """Fast Griffin-Lim on mel magnitudes with a known beginning.

    Args:
        window: Analysis window, ``(W,) float``, on the CPU.
        filters: Mel filters, ``(M, W // 2 + 1) float``, on the CPU.
        hop_samples: Step between frames; frame f covers W samples from ``hop * f - (W - hop) / 2``.
        num_iterations: Projections onto consistent spectrograms.
        momentum: Acceleration of the projections, 0 for none.

    Raises:
        UserError: If ``num_iterations`` is below 1, ``momentum`` outside [0, 1), or the window no multiple of the hop.

    Reference: A fast Griffin-Lim algorithm, WASPAA 2013; real-time iterative inversion with a fixed past, DAFx 2006.
    """

    window: Tensor
    filters: Tensor
    inverse: Tensor

    def __init__(
        self, window: Tensor, filters: Tensor, hop_samples: int, num_iterations: int = 16, momentum: float = 0.99
    ) -> None:
        super().__init__()
        require_at_least(1, num_iterations=num_iterations, hop_samples=hop_samples)
        require_below_one(momentum=momentum)
        require_divisible("the window in samples", len(window), "hop_samples", hop_samples)
        self.hop_samples = hop_samples
        self.num_iterations = num_iterations
        self.momentum = momentum
        self.edge_samples = (len(window) - hop_samples) // 2
        self.register_buffer("window", window.clone(), persistent=False)
        self.register_buffer("filters", filters.clone(), persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(filters.double()).float(), persistent=False)
        self.magnitude_scale = 2.0 / float(window.sum())

    def linear_magnitude(self, mel: Tensor, num_updates: int = 8) -> Tensor:
        """Solve for non-negative magnitudes by multiplicative updates from the clipped pseudo-inverse.

        Args:
            mel: Mel magnitudes ``(M, F)``, in which a full-scale sine has 1.
            num_updates: Multiplicative updates.

        Returns:
            Unscaled STFT magnitudes ``(W // 2 + 1, F)``.
        """
        mel = mel.clamp(min=0.0)
        magnitude = (self.inverse @ mel).clamp(min=1e-6)
        target = self.filters.T @ mel
        for _ in range(num_updates):
            magnitude = magnitude * target / (self.filters.T @ (self.filters @ magnitude)).clamp(min=1e-8)
        return magnitude / self.magnitude_scale

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """Add windowed pieces ``(F, W)``, each a hop after the one before, up to ``(hop * (F - 1) + W,)``."""
        frames, hop = len(pieces), self.hop_samples
        overlap = pieces.shape[1] // hop
        total = pieces.new_zeros(frames + overlap - 1, hop)
        for part, samples in enumerate(pieces.split(hop, dim=1)):
            total[part : part + frames] += samples
        return total.flatten()

    def forward(self, mel: Tensor, known: Tensor, trust: Tensor) -> Tensor:
        """Find a waveform that has the given mel magnitudes and continues a known one.

        Args:
            mel: Mel magnitudes ``(M, F)``.
            known: Samples known before, ``(hop * (F - 1) + W,) float``; any values where ``trust`` is 0.
            trust: Weight of each known sample, of the same shape: 1 keeps it, 0 ignores it, between is a cross-fade.

        Returns:
            Samples ``(hop * (F - 1) + W,) float32``, also under autocast. The first and last ``(W - hop) / 2`` of them
            are margins, outside the hops of the frames.
        """
        width = len(self.window)
        with torch.autocast(mel.device.type, enabled=False):
            magnitude = self.linear_magnitude(mel.float()).T
        weight = self._overlap_add((self.window**2).expand(mel.shape[1], -1)).clamp(min=1e-2)
        # Frames that do not overlap the known samples take their first phases from faint noise.
        noise = torch.randn(len(known), generator=torch.Generator().manual_seed(0)).to(known.device)
        waveform = torch.lerp(1e-4 * noise, known, trust)
        previous: Tensor | float = 0.0
        for _ in range(self.num_iterations):
            spectrum = torch.fft.rfft(waveform.unfold(0, width, self.hop_samples) * self.window)
            moved = spectrum + self.momentum * (spectrum - previous)
            previous = spectrum
            consistent = moved * (magnitude / moved.abs().clamp(min=1e-9))
            pieces = torch.fft.irfft(consistent, n=width) * self.window
            waveform = torch.lerp(self._overlap_add(pieces) / weight, known, trust)
        return waveform

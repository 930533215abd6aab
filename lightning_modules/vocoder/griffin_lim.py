"""Griffin-Lim that continues a given waveform: phases of new frames are found while the past samples stay fixed."""

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError


class GriffinLim(nn.Module):
    """Fast Griffin-Lim on mel magnitudes with a known beginning.

    Args:
        window: (W,) float, the analysis window.
        filters: (M, W // 2 + 1) float, the mel filters.
        hop_samples: Step between frames; frame f covers samples hop * f - (W - hop) / 2 onwards.
        num_iterations: Projections onto consistent spectrograms.
        momentum: Acceleration of the projections, 0 for none.

    Raises:
        UserError: num_iterations < 1, momentum outside [0, 1), or a window that is no multiple of the hop.

    Reference: A fast Griffin-Lim algorithm, WASPAA 2013; real-time iterative inversion with a fixed past, DAFx 2006.
    """

    window: Tensor
    filters: Tensor
    inverse: Tensor

    def __init__(
        self, window: Tensor, filters: Tensor, hop_samples: int, num_iterations: int = 16, momentum: float = 0.99
    ) -> None:
        super().__init__()
        if num_iterations < 1 or not 0.0 <= momentum < 1.0:
            raise UserError(
                f"Griffin-Lim needs num_iterations >= 1 and 0 <= momentum < 1, got {num_iterations} and {momentum}"
            )
        if len(window) % hop_samples:
            raise UserError(f"the window must be a multiple of the hop, got {len(window)} and {hop_samples} samples")
        self.hop_samples = hop_samples
        self.num_iterations = num_iterations
        self.momentum = momentum
        self.edge_samples = (len(window) - hop_samples) // 2
        self.register_buffer("window", window.clone(), persistent=False)
        self.register_buffer("filters", filters.clone(), persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(filters.double()).float(), persistent=False)
        self.magnitude_scale = 2.0 / float(window.sum())

    def linear_magnitude(self, mel: Tensor, num_updates: int = 8) -> Tensor:
        """Non-negative least squares by multiplicative updates from the clipped pseudo-inverse.

        Args:
            mel: (M, F) mel magnitudes, full-scale sine = 1.
            num_updates: Multiplicative updates.

        Returns:
            (W // 2 + 1, F) STFT magnitudes, unscaled.
        """
        mel = mel.clamp(min=0.0)
        magnitude = (self.inverse @ mel).clamp(min=1e-6)
        target = self.filters.T @ mel
        for _ in range(num_updates):
            magnitude = magnitude * target / (self.filters.T @ (self.filters @ magnitude)).clamp(min=1e-8)
        return magnitude / self.magnitude_scale

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """Sums windowed pieces (F, W), each a hop after the one before, to (hop * (F - 1) + W,)."""
        frames, hop = len(pieces), self.hop_samples
        overlap = pieces.shape[1] // hop
        total = pieces.new_zeros(frames + overlap - 1, hop)
        for part, samples in enumerate(pieces.split(hop, dim=1)):
            total[part : part + frames] += samples
        return total.flatten()

    def forward(self, mel: Tensor, known: Tensor, trust: Tensor) -> Tensor:
        """A waveform with the wanted mel magnitudes that goes on from a known one.

        Args:
            mel: (M, F) mel magnitudes.
            known: (hop * (F - 1) + W,) float, samples known before; anything where trust is 0.
            trust: Same shape, 1 where the known sample must stay, 0 where it is free, between: the cross-fade.

        Returns:
            (hop * (F - 1) + W,) float32, also under autocast; its first and last (W - hop) / 2 samples lie outside the
            frames' own.
        """
        width = len(self.window)
        with torch.autocast(mel.device.type, enabled=False):
            magnitude = self.linear_magnitude(mel.float()).T
        weight = self._overlap_add((self.window**2).expand(mel.shape[1], -1)).clamp(min=1e-2)
        # Faint noise gives frames that do not touch the known samples a phase; all others continue those samples.
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

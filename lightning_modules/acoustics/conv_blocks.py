"""Small one-dimensional convolution blocks for spectrogram networks; none normalises over time, so all are local."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Conv1d):
    """A convolution whose output at t depends on inputs up to t only."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C', T)``."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(B, C, T)``, each time step on its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to the same shape."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ResidualConv(nn.Module):
    """``x + conv_1(gelu(conv_k(gelu(x))))``: a convolution over k steps, then one over the channels."""

    def __init__(self, channels: int, kernel_size: int, causal: bool = False) -> None:
        super().__init__()
        self.wide: nn.Module
        if causal:
            self.wide = CausalConv(channels, channels, kernel_size)
        else:
            self.wide = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to the same shape."""
        return x + self.mix(F.gelu(self.wide(F.gelu(x))))


class Upsample(nn.Module):
    """Gives ``factor`` output steps for each input step: a causal transposed convolution without overlap."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Conv1d(in_channels, out_channels * factor, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C', T * factor)``."""
        batch, _, steps = x.shape
        parts = self.expand(x).reshape(batch, -1, self.factor, steps)
        return parts.transpose(2, 3).reshape(batch, -1, steps * self.factor)

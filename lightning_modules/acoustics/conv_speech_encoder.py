"""A convolutional speech encoder whose frames depend on about a third of a second on each side and no more."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.acoustics.conv_blocks import ChannelNorm
from lightning_modules.acoustics.log_mel import HOP_SAMPLES, NUM_MELS, LogMel, zero_beyond
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least


class NormedResidualConv(nn.Module):
    """``x + conv_1(gelu(conv_k(norm(x))))`` with a dilated ``conv_k``."""

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.norm = ChannelNorm(channels)
        self.wide = nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to the same shape."""
        return x + self.mix(F.gelu(self.wide(self.norm(x))))


class ConvSpeechEncoder(nn.Module):
    """Waveform to frames by convolutions over log-mel.

    A judge of speech must recognize words by their sound and not guess them from the sentence, so a frame depends on
    ``reach_s`` seconds on each side only.

    Args:
        channels: Width of the frames.
        dilations: Dilations of the residual blocks, whose kernels have 3 taps.
        stride: Log-mel frames of 10 ms per output frame.
        kernel_size: Log-mel frames that the first layer sees; odd.

    Raises:
        UserError: If a number is below 1, or the kernel is even or narrower than the stride.
    """

    def __init__(
        self, channels: int = 256, dilations: Sequence[int] = (1, 2, 3, 4), stride: int = 3, kernel_size: int = 7
    ) -> None:
        super().__init__()
        require_at_least(1, channels=channels, stride=stride)
        require_at_least(1, **{f"dilations[{index}]": dilation for index, dilation in enumerate(dilations)})
        if kernel_size % 2 == 0 or kernel_size < stride:
            raise UserError(f"kernel_size is {kernel_size}; give an odd number of at least the stride, {stride}")
        self.stride = stride
        self.output_size = channels
        self.reach_frames = 1 + sum(dilations) + -(-(kernel_size // 2) // stride)
        self.log_mel = LogMel()
        self.stem = nn.Conv1d(NUM_MELS, channels, kernel_size, stride, padding=kernel_size // 2)
        self.blocks = nn.Sequential(*(NormedResidualConv(channels, 3, dilation) for dilation in dilations))
        self.norm = ChannelNorm(channels)

    @property
    def reach_s(self) -> float:
        """Seconds of log-mel before and after its own that a frame may depend on, rounded up."""
        return self.reach_frames * self.stride / 100

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode speech.

        Args:
            waveform: ``(B, S) float``, 16 kHz; what lies beyond a row's length is ignored.
            lengths: ``(B,) int64`` samples.

        Returns:
            Frames ``(B, F, D)`` and their numbers ``(B,) int64``, ``ceil(S / (160 * stride))``.
        """
        samples = HOP_SAMPLES * self.stride
        # Silence on both sides keeps the layers' own zero padding away from a row's frames, however long its batch is.
        margin = self.reach_frames * samples
        tail = -waveform.shape[1] % samples
        log_mel = self.log_mel(F.pad(zero_beyond(waveform, lengths), (margin, margin + tail)))
        hidden = self.norm(self.blocks(self.stem(log_mel)))[:, :, self.reach_frames : -self.reach_frames]
        frame_lengths = torch.div(lengths + samples - 1, samples, rounding_mode="floor").to(waveform.device)
        return hidden.transpose(1, 2), frame_lengths

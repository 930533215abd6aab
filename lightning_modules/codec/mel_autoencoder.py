"""The networks of the embedded codec: log-mel to the coordinates of tokens, and back, both of known reach."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.acoustics.conv_blocks import CausalConv, ResidualConv, Upsample
from lightning_modules.acoustics.log_mel import HOP_SAMPLES, NUM_MELS

FRAMES_PER_TOKEN = 4
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * HOP_SAMPLES
ENCODER_REACH_TOKENS = 2
MAX_LOOKAHEAD_TOKENS = 6  # what the decoder's convolutions can see


class TokenEncoder(nn.Module):
    """Log-mel at 100 Hz to FSQ coordinates at 25 Hz, each of which sees 8 frames (80 ms) on each side of its token."""

    def __init__(self, channels: Sequence[int], num_coordinates: int) -> None:
        super().__init__()
        full, half, quarter = channels
        self.layers = nn.Sequential(
            nn.Conv1d(NUM_MELS, full, 5, padding=2),
            ResidualConv(full, 3),
            nn.GELU(),
            nn.Conv1d(full, half, 4, stride=2, padding=1),
            ResidualConv(half, 3),
            nn.GELU(),
            nn.Conv1d(half, quarter, 4, stride=2, padding=1),
            ResidualConv(quarter, 1),
            nn.GELU(),
            nn.Conv1d(quarter, num_coordinates, 1),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map ``(B, 80, 4 T)`` to ``(B, D, T)``."""
        return self.layers(log_mel)


class MelDecoder(nn.Module):
    """FSQ coordinates at 25 Hz to log-mel at 100 Hz: a causal stack that runs ``lookahead_tokens`` behind its input."""

    def __init__(self, channels: Sequence[int], num_coordinates: int, lookahead_tokens: int) -> None:
        super().__init__()
        full, half, quarter = channels
        self.lookahead_tokens = lookahead_tokens
        self.layers = nn.Sequential(
            CausalConv(num_coordinates, quarter, 3),
            ResidualConv(quarter, 3, causal=True),
            ResidualConv(quarter, 3, causal=True),
            nn.GELU(),
            Upsample(quarter, half, 2),
            ResidualConv(half, 3, causal=True),
            nn.GELU(),
            Upsample(half, full, 2),
            ResidualConv(full, 3, causal=True),
            ResidualConv(full, 3, causal=True),
            nn.GELU(),
            CausalConv(full, NUM_MELS, 3),
        )

    @property
    def left_context_tokens(self) -> int:
        """Earlier tokens that a frame of token t may depend on (24 + 4 + 6 frames, rounded up)."""
        return 9 - self.lookahead_tokens

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map ``(B, D, T)`` to ``(B, 80, 4 T)``."""
        delay = self.lookahead_tokens
        return self.layers(F.pad(coordinates, (0, delay)))[:, :, delay * FRAMES_PER_TOKEN :]

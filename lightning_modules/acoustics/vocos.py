"""A network from log-mel to samples in the manner of Vocos: ConvNeXt blocks, then an inverse Fourier transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from lightning_modules.acoustics.log_mel import HOP_SAMPLES, LOG_STD, NUM_MELS, SAMPLE_RATE, SILENCE
from lightning_modules.number_checks import require_at_least, require_within

# Logarithm of a bin's magnitude in the inverse transform against that of its mel band, about that of noise and speech.
ENVELOPE_OFFSET = -4.0
MAX_LOG_MAGNITUDE = 6.0  # exp(6) is 400 times a usual magnitude; an untrained head must not overflow


@dataclass(frozen=True)
class VocosState:
    """What a stream carries from step to step; its size does not depend on the time.

    Attributes:
        contexts: The newest inputs of each convolution, ``(B, C, kernel_size - 1)``.
        overlap: Samples that later frames will be added to, ``(B, (window_hops - 1) * hop)``.
    """

    contexts: tuple[Tensor, ...]
    overlap: Tensor


class ConvNeXtBlock(nn.Module):
    """``x + scale * contract(gelu(expand(norm(depthwise(x)))))``, causal in time.

    Reference: A ConvNet for the 2020s, arXiv 2201.03545.
    """

    def __init__(self, channels: int, kernel_size: int, hidden_size: int, initial_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden_size)
        self.contract = nn.Linear(hidden_size, channels)
        self.scale = nn.Parameter(torch.full((channels,), initial_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, kernel_size - 1 + F)``, the first of them past inputs, to ``(B, C, F)``."""
        hidden = self.expand(self.norm(self.depthwise(x).transpose(1, 2)))
        change = self.scale * self.contract(F.gelu(hidden))
        return x[:, :, self.depthwise.kernel_size[0] - 1 :] + change.transpose(1, 2)


class Vocos(nn.Module):
    """Log-mel at 100 Hz to samples at 16 kHz, by a causal network that runs ``lookahead_frames`` behind its input.

    Frame f of the network gives magnitudes and phases of a short-time spectrum, whose samples lie in the hops
    ``f - lookahead_frames .. f - lookahead_frames + window_hops - 1``. So hop h is complete as soon as mel frame
    ``h + lookahead_frames`` is there; that is all the look-ahead there is.

    Args:
        channels: Width of the network.
        num_blocks: ConvNeXt blocks.
        kernel_size: Frames that the first layer and each block see.
        expansion: Width inside a block, in multiples of ``channels``.
        lookahead_frames: Mel frames of 10 ms after a hop that its samples depend on.
        window_hops: Width of the synthesis window in hops of 10 ms.

    Raises:
        UserError: If a number is out of its range.

    Reference: Vocos, arXiv 2306.00814.
    """

    hop_samples = HOP_SAMPLES
    silence = SILENCE
    window: Tensor
    envelope: Tensor

    def __init__(
        self,
        channels: int = 192,
        num_blocks: int = 6,
        kernel_size: int = 7,
        expansion: int = 3,
        lookahead_frames: int = 4,
        window_hops: int = 4,
    ) -> None:
        super().__init__()
        require_at_least(1, channels=channels, num_blocks=num_blocks, expansion=expansion)
        require_at_least(2, window_hops=window_hops, kernel_size=kernel_size)
        # A frame must not come after samples that it belongs to, nor its envelope lie before what the stem sees.
        require_within(window_hops - 1, kernel_size - 2 + window_hops // 2, lookahead_frames=lookahead_frames)
        self.kernel_size = kernel_size
        self.lookahead_frames = lookahead_frames
        self.window_hops = window_hops
        self.window_samples = window_hops * HOP_SAMPLES
        self.stem = nn.Conv1d(NUM_MELS, channels, kernel_size)
        self.stem_norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(channels, kernel_size, expansion * channels, 1.0 / num_blocks) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 2 * (self.window_samples // 2 + 1))
        # The network starts from the envelope that its input shows: each bin takes the log-mel at its frequency.
        self.register_buffer("envelope", envelope_matrix(self.window_samples // 2 + 1), persistent=False)
        # Overlapping windows add up to 1.
        window = torch.hann_window(self.window_samples, device="cpu") * (2.0 / window_hops)
        self.register_buffer("window", window, persistent=False)

    @property
    def lookahead_s(self) -> float:
        """Seconds of log-mel after a hop that its samples depend on."""
        return self.lookahead_frames * HOP_SAMPLES / SAMPLE_RATE

    def begin(self, log_mel: Tensor) -> VocosState:
        """Give the state of streams before their first frame: silence.

        Args:
            log_mel: ``(B, 80, F)``; its batch size, type and device are those of the state.
        """
        batch, past = len(log_mel), self.kernel_size - 1
        widths = [NUM_MELS, *[self.stem.out_channels] * len(self.blocks)]
        overlap = log_mel.new_zeros(batch, self.window_samples - HOP_SAMPLES, dtype=torch.float32)
        return VocosState(tuple(log_mel.new_zeros(batch, width, past) for width in widths), overlap)

    def step(self, log_mel: Tensor, state: VocosState) -> tuple[Tensor, VocosState]:
        """Take the next frames of streams, and give the hops that they complete.

        Args:
            log_mel: Normalised log-mel ``(B, 80, F)``, F at least 1.
            state: From :meth:`begin` or the step before.

        Returns:
            Samples ``(B, 160 F) float32``, those of the hops ``lookahead_frames`` before the frames (the first ones lie
            before the utterance and mean nothing), and the next state.
        """
        contexts: list[Tensor] = []

        def with_context(x: Tensor) -> Tensor:
            seen = torch.cat([state.contexts[len(contexts)].to(x.dtype), x], dim=2)
            contexts.append(seen[:, :, seen.shape[2] - self.kernel_size + 1 :])
            return seen

        seen_mel = with_context(log_mel - SILENCE)
        x = self.stem(seen_mel)
        x = self.stem_norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(with_context(x))
        # The two mel frames around the centre of each window, among those that the stem saw.
        centre = self.kernel_size - 1 - self.lookahead_frames + self.window_hops // 2
        near = F.avg_pool1d(seen_mel[:, :, centre - 1 : centre + log_mel.shape[2]], 2, stride=1)
        samples, overlap = self._synthesize(self.norm(x.transpose(1, 2)), near.transpose(1, 2), state.overlap)
        return samples, VocosState(tuple(contexts), overlap)

    def _synthesize(self, hidden: Tensor, log_mel: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """Turn frames ``(B, F, C)`` and the mel near them into samples: complete hops, and the overlap that is left."""
        with torch.autocast(hidden.device.type, enabled=False):
            log_magnitude, phase = self.head(hidden.float()).chunk(2, dim=-1)
            log_magnitude = log_magnitude + LOG_STD * log_mel.float() @ self.envelope.T + ENVELOPE_OFFSET
            magnitude = log_magnitude.clamp(max=MAX_LOG_MAGNITUDE).exp()
            pieces = torch.fft.irfft(torch.polar(magnitude, phase), n=self.window_samples) * self.window
            batch, frames, _ = pieces.shape
            total = pieces.new_zeros(batch, frames + self.window_hops - 1, HOP_SAMPLES)
            total[:, : self.window_hops - 1] += overlap.view(batch, -1, HOP_SAMPLES)
            for part, samples in enumerate(pieces.split(HOP_SAMPLES, dim=2)):
                total[:, part : part + frames] += samples
            return total[:, :frames].flatten(1), total[:, frames:].flatten(1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn whole utterances into samples.

        Args:
            log_mel: Normalised log-mel ``(B, 80, F)``; silence follows.

        Returns:
            Samples ``(B, 160 F) float32``.
        """
        padded = F.pad(log_mel, (0, self.lookahead_frames), value=SILENCE)
        samples, _ = self.step(padded, self.begin(padded))
        return samples[:, self.lookahead_frames * HOP_SAMPLES :]


def band_centres_hz() -> Tensor:
    """Give the frequency in Hz at which each mel band is widest open, ``(80,) float32``."""
    mels = np.linspace(0.0, hertz_to_mel(SAMPLE_RATE / 2, "slaney"), NUM_MELS + 2)[1:-1]
    return torch.from_numpy(mel_to_hertz(mels, "slaney")).float()


def envelope_matrix(num_bins: int) -> Tensor:
    """Interpolate mel bands to bins: ``(num_bins, 80) float32`` whose rows add up to 1."""
    centres = band_centres_hz()
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, num_bins, device="cpu")
    upper = torch.searchsorted(centres, bins).clamp(1, NUM_MELS - 1)
    share = ((bins - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0.0, 1.0)
    matrix = torch.zeros(num_bins, NUM_MELS, device="cpu")
    matrix.scatter_(1, upper[:, None], share[:, None])
    matrix.scatter_(1, upper[:, None] - 1, 1 - share[:, None])
    return matrix

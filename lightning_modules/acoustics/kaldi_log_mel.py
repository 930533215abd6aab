"""The log-mel filterbank of Kaldi, which Wav2Vec2-BERT reads, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
NUM_MELS = 80
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
# Kaldi's samples are 16-bit numbers, and so is the floor below.
SCALE = 2.0**15
FLOOR = torch.finfo(torch.float32).eps


class KaldiLogMel(nn.Module):
    """Log-mel energies at 100 Hz, each mel bin with mean 0 and variance 1 over the utterance.

    Frames lie inside the waveform, as with Kaldi's ``snip_edges``; nothing is dithered. ``torchaudio``, whose function
    the feature extractors of transformers call, has no build for every build of PyTorch.

    Reference: ``compute-fbank-feats`` of Kaldi; the window is its "povey" window, a Hann window to the power of 0.85.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(FRAME_SAMPLES, periodic=False, dtype=torch.float64) ** 0.85
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", mel_filters().float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map ``(S,) float32`` at 16 kHz, S at least 560, to ``(F, 80) float32``, F = 1 + (S - 400) // 160."""
        with torch.autocast(waveform.device.type, enabled=False):
            frames = (waveform.float() * SCALE).unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
            frames = frames - frames.mean(dim=1, keepdim=True)
            before = F.pad(frames, (1, 0), mode="replicate")[:, :-1]
            frames = (frames - PREEMPHASIS * before) * self.window
            power = torch.fft.rfft(F.pad(frames, (0, FFT_SAMPLES - FRAME_SAMPLES))).abs() ** 2
            features = (power[:, :-1] @ self.filters.T).clamp(min=FLOOR).log()
            deviation = (features.var(dim=0, unbiased=True) + 1e-7).sqrt()
            return (features - features.mean(dim=0)) / deviation


def mel_filters() -> Tensor:
    """Build triangles in Kaldi's mel scale from 20 Hz to 8 kHz, ``(80, 256) float64``, over bins below Nyquist's."""

    def to_mel(hertz: Tensor | float) -> Tensor:
        return 1127.0 * torch.log(1.0 + torch.as_tensor(hertz, dtype=torch.float64) / 700.0)

    lowest, highest = to_mel(LOWEST_HZ), to_mel(SAMPLE_RATE / 2)
    step = (highest - lowest) / (NUM_MELS + 1)
    left = (lowest + step * torch.arange(NUM_MELS, dtype=torch.float64))[:, None]
    bins = to_mel(torch.arange(FFT_SAMPLES // 2, dtype=torch.float64) * SAMPLE_RATE / FFT_SAMPLES)[None]
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    return torch.minimum(rising, falling).clamp(min=0.0)

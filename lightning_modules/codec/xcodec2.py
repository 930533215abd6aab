"""X-Codec2: speech at 16 kHz to 50 tokens per second and back."""

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, Xcodec2Config, Xcodec2Model

from lightning_modules.codec.transformers_codec import TransformersCodec


class Xcodec2(TransformersCodec):
    """X-Codec2; S samples are S // 320 + 1 tokens, the last of them mostly of padding.

    Reference: arXiv 2502.04128; ``Xcodec2Model`` of transformers.
    """

    name = "xcodec2"
    model_class = Xcodec2Model
    config_class = Xcodec2Config
    min_tokens = 0

    @staticmethod
    def input_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is encoded."""
        return config.sampling_rate

    @staticmethod
    def output_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is decoded, the same."""
        return config.sampling_rate

    def semantic_source(self, padded: Tensor) -> Tensor:
        """Give the padded waveform with half a token of silence on both sides."""
        return F.pad(padded, (self.hop_samples // 2, self.hop_samples // 2))

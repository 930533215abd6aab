"""NeuCodec: speech at 16 kHz to 50 tokens per second, and those to speech at 24 kHz."""

from torch import Tensor
from transformers import NeuCodecConfig, NeuCodecModel, PreTrainedConfig

from lightning_modules.codec.transformers_codec import TransformersCodec


class NeuCodec(TransformersCodec):
    """NeuCodec; S samples, at least 320, are S // 320 tokens.

    Reference: arXiv 2509.09550; ``NeuCodecModel`` of transformers.
    """

    name = "neucodec"
    model_class = NeuCodecModel
    config_class = NeuCodecConfig
    min_tokens = 1

    @staticmethod
    def input_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is encoded."""
        return config.input_sampling_rate

    @staticmethod
    def output_rate(config: PreTrainedConfig) -> int:
        """Give the samples per second of what is decoded."""
        return config.output_sampling_rate

    def semantic_source(self, padded: Tensor) -> Tensor:
        """Give the padded waveform as it is."""
        return padded

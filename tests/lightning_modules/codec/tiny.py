"""Tiny codecs of the real classes of transformers, with random weights."""

from typing import Any

import torch
from transformers import NeuCodecConfig, NeuCodecModel, PreTrainedModel, Xcodec2Config, Xcodec2Model

SIZES: dict[str, Any] = {
    "hidden_size": 64,  # two channels for each of the 32 groups of GroupNorm, which one token needs
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "encoder_hidden_size": 2,
    "quantization_dim": 80,
}
SEMANTIC: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "output_hidden_size": 16,
    "feature_projection_input_dim": 160,
}


def make_model(name: str) -> PreTrainedModel:
    """Draw the weights of a tiny codec; a wide first layer lets the tokens differ from frame to frame."""
    config_class, model_class = {
        "neucodec": (NeuCodecConfig, NeuCodecModel),
        "xcodec2": (Xcodec2Config, Xcodec2Model),
    }[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(**SIZES, semantic_model_config=dict(SEMANTIC), initializer_range=0.3))
    return model.eval()

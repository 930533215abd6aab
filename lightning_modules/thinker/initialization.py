"""Initial weights of small networks that are trained from scratch."""

import torch
from torch import nn


@torch.no_grad()
def initialize_by_fan_in(module: nn.Module, residual_outputs: list[nn.Linear]) -> None:
    """Draw the weights of linear and convolutional layers with a variance of 1 / fan-in.

    The configurations of transformers draw every weight with a standard deviation of 0.02, which suits a width of
    2,500. At a width of 128 it makes the audio ten times weaker than the position embeddings, and a speech recognizer
    needs several times as many steps.

    Args:
        module: The module whose layers are drawn again; embeddings and norms stay as they are.
        residual_outputs: The layers that write into the residual stream; they are divided by the square root of their
            number, so that the stream does not grow with depth.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            fan_in = layer.weight[0].numel()
            gain = 2.0 if isinstance(layer, nn.Conv1d) else 1.0  # a GELU follows each convolution
            layer.weight.normal_(std=(gain / fan_in) ** 0.5)
    for layer in residual_outputs:
        layer.weight.mul_(len(residual_outputs) ** -0.5)

"""Weights that train are kept in float32, whatever the frozen ones beside them are kept in.

A bfloat16 has 8 bits: AdamW's step of 1e-5 is lost on every weight above 0.005, since the sum rounds to the weight.
"""

import warnings

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


def keep_trained_in_float32(module: nn.Module, precision: str) -> None:
    """Turn the weights that train into float32, and say so if there are any in a half precision.

    Args:
        module: Before its optimizer is made.
        precision: Of the trainer.
    """
    low = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.dtype in HALF]
    for parameter in low:
        parameter.data = parameter.data.float()
    if precision in ("bf16-true", "16-true"):
        warnings.warn(
            f"trainer.precision {precision} keeps weights in 16 bits, where small steps of the optimizer are lost; "
            "set it to bf16-mixed",
            stacklevel=2,
        )
    elif low:
        warnings.warn(
            f"{sum(one.numel() for one in low):,} weights were loaded in 16 bits but train: they are kept in float32, "
            "so that small steps of the optimizer are not lost. Set trainer.precision to bf16-mixed to compute in 16 "
            "bits, or lora_rank to train few of them",
            stacklevel=2,
        )

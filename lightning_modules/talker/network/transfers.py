"""Copies from the host to a device, for which neither of them waits."""

import torch
from torch import Tensor


def is_within(lengths: Tensor, num_places: int, device: torch.device) -> Tensor:
    """Tell on a device which places of each row lie within its length: ``(B,) int64`` to ``(B, num_places) bool``."""
    return torch.arange(num_places, device=device) < send_to(device, lengths)[:, None]


def send_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to a device; it is returned as it is if it lives there.

    A copy out of page-locked memory queues up behind the work of a GPU, where any other makes the host wait for it.

    Args:
        device: Where it is wanted.
        tensor: Any tensor.
    """
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
